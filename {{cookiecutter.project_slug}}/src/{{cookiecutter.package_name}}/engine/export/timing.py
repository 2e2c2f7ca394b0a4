"""Times one exported file in a process of its own, so that several files can take turns.

python -m <package>.engine.export.timing <format> <file> <golden.npz> <number of threads>

For each line `{"batch_size": b, "seconds": s}` of its standard input, the process writes the seconds of each call as a
list, or the reason why the file cannot be run as a text.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .formats import Array, Run, exporter
from .gate import first_samples
from .signature import GateFailure

NUM_WARMUP_CALLS, MIN_CALLS = 3, 5


class Timer:
    """Starts the process, and ends it at the end of a `with` block."""

    def __init__(self, format_name: str, file: Path, golden: Path, num_threads: int) -> None:
        command = [sys.executable, "-m", __name__, format_name, str(file), str(golden), str(num_threads)]
        self.file = file
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> "Timer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def time(self, batch_size: int, seconds: float) -> list[float]:
        """Returns the seconds of each call; raises `GateFailure` if the file cannot be run."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps({"batch_size": batch_size, "seconds": seconds}), file=self.process.stdin, flush=True)
            answer: Any = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:  # the process has ended
            reason = f"its process ended with {self.process.wait()}"
            raise GateFailure(f"{self.file.name} cannot be timed: {reason}.") from error
        if isinstance(answer, str):
            raise GateFailure(f"{self.file.name} cannot be timed: {answer}")
        return [float(figure) for figure in answer]


def time_calls(run: Run, batch: Array, seconds: float) -> list[float]:
    """Returns the seconds of each call, of at least `MIN_CALLS`."""
    for _ in range(NUM_WARMUP_CALLS):
        run(batch)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    _, format_name, file, golden_file, num_threads = sys.argv
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not be read as an answer
    with np.load(golden_file) as golden:
        inputs = golden["input"]
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            run = run or exporter(format_name).load(Path(file), num_threads=int(num_threads))
            answer: Any = time_calls(run, first_samples(inputs, request["batch_size"]), request["seconds"])
        except Exception as error:  # each runtime has its own exceptions for a file that it cannot use
            answer = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
