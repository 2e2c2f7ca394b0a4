"""Runs one exported file in a process of its own, as a user of it would: nothing of the training is left there.

python -m <package>.exporters.fresh <format> <file> <samples.npz> <answers.npz>

`samples.npz` holds `inputs` `(N, ...)`, `batch_sizes` and `max_batch_size`. Written to `answers.npz`, for each batch
size b: `logits_b` and `probabilities_b`, `repeat_b` (the second run's logits), `plain_b` (logits without the runtime's
optimiser); then `logits`, of all samples, and `latency_ms`, the median of one sample.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from . import Array, Run, format_named

NUM_TIMED = 200


def answer(
    format_name: str, file: Path, inputs: Array, batch_sizes: list[int], max_batch_size: int
) -> dict[str, Array]:
    load = format_named(format_name).load
    run, run_plain = load(file), load(file, optimize=False)
    answers: dict[str, Array] = {}
    for size in batch_sizes:
        batch = first_samples(inputs, size)
        answers[f"logits_{size}"], answers[f"probabilities_{size}"] = run(batch)
        answers[f"repeat_{size}"], _ = run(batch)
        answers[f"plain_{size}"], _ = run_plain(batch)
    parts = [run(inputs[start : start + max_batch_size])[0] for start in range(0, len(inputs), max_batch_size)]
    answers["logits"] = np.concatenate(parts)
    answers["latency_ms"] = np.array(median_latency_ms(run, inputs[:1]))
    return answers


def first_samples(inputs: Array, num_samples: int) -> Array:
    """Real samples; where there are fewer than a batch takes, they come again."""
    return inputs[np.arange(num_samples) % len(inputs)]


def median_latency_ms(run: Run, inputs: Array) -> float:
    for _ in range(NUM_TIMED // 10):
        run(inputs)
    times = []
    for _ in range(NUM_TIMED):
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


if __name__ == "__main__":
    _, format_name, file, samples_file, answers_file = sys.argv
    with np.load(samples_file) as samples:
        answers = answer(
            format_name,
            Path(file),
            samples["inputs"],
            samples["batch_sizes"].tolist(),
            int(samples["max_batch_size"]),
        )
    np.savez(answers_file, **answers)  # type: ignore[arg-type]
