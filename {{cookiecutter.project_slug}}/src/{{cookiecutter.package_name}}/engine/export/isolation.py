"""Runs one exported file in a process of its own, as a user of it would: nothing of the training is left there.

python -m <package>.exporters.fresh <format> <file> <samples.npz> <answers.npz>

`samples.npz` holds `inputs` `(N, ...)`, `batch_sizes` and `max_batch_size`. Written to `answers.npz`, for each batch
size b: `output0_b` and what other outputs there are, `repeat_b` (the first output of a second run), `plain_b` and
`plain_repeat_b` (the same without the runtime's optimiser); then of all samples the first output, as `first` and
`plain`, and `latency_ms`, the median of one sample.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .formats import Array, Run, exporter
from .signature import GateFailure

NUM_TIMED, MAX_SECONDS = 200, 2.0


def run_isolated(
    format_name: str, file: Path, inputs: Array, batch_sizes: list[int], max_batch_size: int
) -> dict[str, Array]:
    """What `answers.npz` holds; raises `GateFailure` where the file cannot be run in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="gate-") as scratch:
        samples, answers = Path(scratch, "samples.npz"), Path(scratch, "answers.npz")
        sizes = {"batch_sizes": np.array(batch_sizes), "max_batch_size": np.array(max_batch_size)}
        np.savez(samples, inputs=inputs, **sizes)  # type: ignore[arg-type]
        command = [sys.executable, "-m", __name__, format_name, str(file), str(samples), str(answers)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            reason = (process.stderr.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
            raise GateFailure(f"{file.name} cannot be loaded and run in a fresh process: {reason}")
        with np.load(answers) as found:
            return dict(found)


def first_samples(inputs: Array, num_samples: int) -> Array:
    """Real samples; where there are fewer than a batch takes, they come again."""
    return inputs[np.arange(num_samples) % len(inputs)]


def median_latency_ms(run: Run, inputs: Array) -> float:
    """Of up to 200 calls within about two seconds."""
    run(inputs)
    times: list[float] = []
    while len(times) < NUM_TIMED and (len(times) < 3 or sum(times) < MAX_SECONDS):
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def _answer(
    format_name: str, file: Path, inputs: Array, batch_sizes: list[int], max_batch_size: int
) -> dict[str, Array]:
    load = exporter(format_name).load
    run, run_plain = load(file), load(file, optimize=False)
    answers: dict[str, Array] = {}
    for size in batch_sizes:
        batch = first_samples(inputs, size)
        answers |= {f"output{place}_{size}": output for place, output in enumerate(run(batch))}
        answers[f"repeat_{size}"] = run(batch)[0]
        answers[f"plain_{size}"] = run_plain(batch)[0]
        answers[f"plain_repeat_{size}"] = run_plain(batch)[0]
    for name, way in (("first", run), ("plain", run_plain)):
        parts = [way(inputs[start : start + max_batch_size])[0] for start in range(0, len(inputs), max_batch_size)]
        answers[name] = np.concatenate(parts)
    answers["latency_ms"] = np.array(median_latency_ms(run, inputs[:1]))
    return answers


def main() -> None:
    _, format_name, file, samples_file, answers_file = sys.argv
    with np.load(samples_file) as samples:
        sizes = samples["batch_sizes"].tolist(), int(samples["max_batch_size"])
        try:
            answers = _answer(format_name, Path(file), samples["inputs"], *sizes)
        except Exception as error:  # what a runtime raises for a file that it cannot use is its own
            sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    np.savez(answers_file, **answers)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
