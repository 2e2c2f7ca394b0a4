"""The gate: a file is published only if it agrees, in a fresh process, with the trained model on real samples."""

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..inference.runtime import difference
from ..inference.tasks import TASKS, Task
from ..isolation import IsolatedError, run_isolated
from .formats import FORMATS, Array, Run, exporter
from .signature import Contract, GateFailure, verified_batch_sizes

# A second output may differ by this much from what follows from the first one: 16 bits hold three digits.
FOLLOWING_TOLERANCE = 5e-3
NUM_TIMED, MAX_SECONDS = 200, 2.0
INPUTS, ANSWERS = "inputs.npy", "answers.npz"


@dataclass(frozen=True)
class Parity:
    """How one file compares with the trained model in eager mode."""

    format: str
    file: str
    num_bytes: int
    largest_difference: float  # max |a - b| / max(1, |b|) over all batches and the test split
    num_agreeing: int  # test samples with the same prediction
    num_samples: int
    score_name: str
    score: float  # on the test split
    latency_ms: float  # median of one sample, one thread

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of the manifest."""
        entry = asdict(self)
        score = {entry.pop("score_name"): entry.pop("score")}
        return {**entry, **score}


@dataclass(frozen=True)
class Limits:
    """`tolerance` bounds the outputs of exact formats, `max_metric_loss` what reduced ones may lose of the score."""

    max_batch_size: int
    tolerance: float
    max_metric_loss: float


@dataclass(frozen=True)
class Reference:
    """The outputs of the trained model for real samples: raw inputs `(N, ...)` with their labels or targets `truth`."""

    task: Task
    inputs: Array
    truth: Array
    first: Array  # the first output of all samples (N, K)
    by_batch: dict[int, tuple[Array, ...]]  # by batch size: the outputs for the first samples

    @classmethod
    def of(
        cls, model: Run, inputs: Array, truth: Array, max_batch_size: int, task: str = "classification"
    ) -> "Reference":
        first = first_outputs(model, inputs, max_batch_size)
        if not np.isfinite(first).all():
            raise GateFailure("the trained model answers samples of the test split with NaN or infinity: train anew.")
        sizes = verified_batch_sizes(max_batch_size)
        by_batch = {size: model(first_samples(inputs, size)) for size in sizes}
        return cls(TASKS[task], inputs, truth, first, by_batch)

    @property
    def score(self) -> float:
        return self.task.score(self.first, self.truth)


def admit(format_name: str, folder: Path, contract: Contract, reference: Reference, limits: Limits) -> Parity:
    """Raises `GateFailure` unless the format's file in `folder` is the trained model."""
    format, path = FORMATS[format_name], folder / FORMATS[format_name].file
    check_structure(format_name, path, contract)
    answers = isolated_answers(format_name, path, reference.inputs, list(reference.by_batch), limits.max_batch_size)
    check_repeats(path, answers, list(reference.by_batch))
    tolerance = limits.tolerance if format.exact else float("inf")
    task = reference.task
    worst = compare_batches(path, answers, reference.by_batch, tolerance, task)
    over_all = difference(answers["first"], reference.first)
    refuse_above(tolerance, path, over_all, f"{task.outputs[0]} of the test split")
    scores = {name: task.score(answers[name], reference.truth) for name in ("plain", "first")}
    for name, what in (("plain", " without the runtime's optimiser"), ("first", "")):
        lost, allowed = reference.score - scores[name], limits.max_metric_loss
        if not (abs(lost) <= task.rounding if format.exact else lost <= allowed + 1e-9):
            raise GateFailure(
                f"{path.name} has {task.score_name} {scores[name]:.4f} on the test split{what}, the trained model "
                f"{reference.score:.4f}; {'none' if format.exact else f'export.max_metric_loss={allowed:g}'} "
                "may be lost."
            )
    return Parity(
        format=format_name,
        file=path.name,
        num_bytes=path.stat().st_size,
        largest_difference=max(worst, over_all),
        num_agreeing=task.agreeing(answers["first"], reference.first),
        num_samples=len(reference.inputs),
        score_name=task.score_name,
        score=scores["first"],
        latency_ms=float(answers["latency_ms"]),
    )


def check_structure(format_name: str, path: Path, contract: Contract) -> None:
    """Raises `GateFailure` for a file that is damaged or breaks the contract, without running it."""
    try:
        exporter(format_name).check(path, contract)
    except (UserError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
        reason = " ".join(str(error).split())[:300]
        raise GateFailure(f"{path.name} cannot be read: {type(error).__name__}: {reason}") from error


def isolated_answers(
    format_name: str, path: Path, inputs: Array, batch_sizes: list[int], max_batch_size: int
) -> dict[str, Array]:
    """Runs one file in a process of its own, as a user of it would; `inputs` is `(N, ...)`.

    Returns for each batch size b `output0_b` and what other outputs there are, `repeat_b` (the first output of a second
    run), `plain_b` and `plain_repeat_b` (the same without the runtime's optimiser); the first output of all samples, as
    `first` and `plain`; and `latency_ms`, the median of one sample.
    """
    with tempfile.TemporaryDirectory(prefix="gate-") as scratch:
        np.save(Path(scratch, INPUTS), inputs)
        sizes = {"batch_sizes": batch_sizes, "max_batch_size": max_batch_size}
        try:
            run_isolated(write_answers, format_name=format_name, file=str(path), folder=scratch, **sizes)
        except IsolatedError as error:
            raise GateFailure(f"{path.name} cannot be loaded and run in a fresh process: {error}") from error
        with np.load(Path(scratch, ANSWERS)) as answers:
            return dict(answers)


def write_answers(format_name: str, file: str, folder: str, batch_sizes: list[int], max_batch_size: int) -> None:
    """The isolated part of `isolated_answers`; reads the inputs from `folder` and writes the answers there."""
    inputs, load = np.load(Path(folder, INPUTS)), exporter(format_name).load
    run, run_plain = load(Path(file)), load(Path(file), optimize=False)
    answers: dict[str, Array] = {}
    for size in batch_sizes:
        batch = first_samples(inputs, size)
        answers |= {f"output{place}_{size}": output for place, output in enumerate(run(batch))}
        answers[f"repeat_{size}"] = run(batch)[0]
        answers[f"plain_{size}"] = run_plain(batch)[0]
        answers[f"plain_repeat_{size}"] = run_plain(batch)[0]
    for name, model in (("first", run), ("plain", run_plain)):
        answers[name] = first_outputs(model, inputs, max_batch_size)
    answers["latency_ms"] = np.array(median_latency_ms(run, inputs[:1]))
    np.savez(Path(folder, ANSWERS), **answers)  # type: ignore[arg-type]


def first_samples(inputs: Array, num_samples: int) -> Array:
    """Returns real samples; where there are fewer than a batch takes, they come again."""
    return inputs[np.arange(num_samples) % len(inputs)]


def first_outputs(run: Run, inputs: Array, batch_size: int) -> Array:
    """Returns the first output of all samples, `(N, K)`."""
    return np.concatenate([run(inputs[start : start + batch_size])[0] for start in range(0, len(inputs), batch_size)])


def median_latency_ms(run: Run, inputs: Array) -> float:
    """Times up to 200 calls within about two seconds."""
    run(inputs)
    times: list[float] = []
    while len(times) < NUM_TIMED and (len(times) < 3 or sum(times) < MAX_SECONDS):
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def check_repeats(path: Path, answers: dict[str, Array], batch_sizes: list[int]) -> None:
    """Raises `GateFailure` where a second run gave other outputs than the first."""
    for size in batch_sizes:
        for first, second in (("output0", "repeat"), ("plain", "plain_repeat")):
            if not np.array_equal(answers[f"{first}_{size}"], answers[f"{second}_{size}"]):
                raise GateFailure(f"{path.name} answers the same batch of {size} differently a second time.")


def compare_batches(
    path: Path, answers: dict[str, Array], expected: dict[int, tuple[Array, ...]], tolerance: float, task: Task
) -> float:
    """Returns the largest difference over all batch sizes, with and without the runtime's optimiser."""
    worst, (first, *others) = 0.0, task.outputs
    for size, outputs in expected.items():
        found = [answers[f"output{place}_{size}"] for place in range(len(outputs))]
        pairs = [*zip(task.outputs, found, outputs, strict=True)]
        pairs.append((f"{first} without the runtime's optimiser", answers[f"plain_{size}"], outputs[0]))
        for what, output, right in pairs:
            apart = difference(output, right)
            refuse_above(tolerance, path, apart, f"{what} at batch {size}")
            worst = max(worst, apart)
        for name, output, own in zip(others, found[1:], task.following(found[0]), strict=True):
            if not difference(output, own) <= FOLLOWING_TOLERANCE:
                raise GateFailure(f"{path.name} gives {name} that are not those of its {first} at batch {size}.")
    return worst


def refuse_above(tolerance: float, path: Path, found: float, where: str) -> None:
    """Raises `GateFailure` above the tolerance; infinity and NaN are above any."""
    if not found <= tolerance or not np.isfinite(found):
        raise GateFailure(
            f"{path.name} differs from the trained model by {found:.2g} in the {where}; {tolerance:.2g} is allowed."
        )
