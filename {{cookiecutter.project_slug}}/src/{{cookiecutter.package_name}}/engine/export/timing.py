"""Times one exported file in a process of its own, so that several files can take turns."""

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..isolation import IsolatedError, IsolatedProcess
from .formats import Array, Run, exporter, first_samples
from .signature import GateFailure

NUM_WARMUP_CALLS, MIN_CALLS = 3, 5


class Timer(IsolatedProcess):
    """The process of one file, for a `with` block."""

    def __init__(self, format_name: str, file: Path, golden: Path, num_threads: int) -> None:
        self.loaded: dict[str, Any] = {
            "format_name": format_name,
            "file": str(file),
            "golden": str(golden),
            "num_threads": num_threads,
        }

    def time(self, batch_size: int, seconds: float) -> list[float]:
        """Returns the seconds of each call; raises `GateFailure` if the file cannot be run."""
        try:
            times: list[float] = self.call(time_file, **self.loaded, batch_size=batch_size, seconds=seconds)
        except IsolatedError as error:
            raise GateFailure(f"{Path(self.loaded['file']).name} cannot be timed: {error}") from error
        return times


def time_file(
    format_name: str, file: str, golden: str, num_threads: int, batch_size: int, seconds: float
) -> list[float]:
    """The isolated part of `Timer.time`; at least five calls, however long they take."""
    run, inputs = _loaded(format_name, file, golden, num_threads)
    batch = first_samples(inputs, batch_size)
    for _ in range(NUM_WARMUP_CALLS):
        run(batch)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return times


@cache
def _loaded(format_name: str, file: str, golden: str, num_threads: int) -> tuple[Run, Array]:
    with np.load(golden) as samples:
        return exporter(format_name).load(Path(file), num_threads=num_threads), samples["input"]
