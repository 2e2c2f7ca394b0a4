"""The gate: no file is published unless it was loaded afresh and agreed with the trained model on real samples."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..inference.runtime import difference
from ..inference.tasks import TASKS, Task
from .formats import FORMATS, Array, Run, exporter
from .isolation import first_samples, run_isolated
from .signature import Contract, GateFailure, verified_batch_sizes

# What follows from a first output may differ by this much from the second one of a reduced format: 16 bits hold three
# digits.
FOLLOWING_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Parity:
    """How one file compares with the trained model in eager mode."""

    format: str
    file: str
    num_bytes: int
    largest_difference: float  # max |a - b| / max(1, |b|) over all tried batches and the test split
    num_agreeing: int  # test samples that are answered alike
    num_samples: int
    score_name: str
    score: float  # on the test split
    latency_ms: float  # median of one sample, one thread

    def to_dict(self) -> dict[str, Any]:
        """As in the manifest."""
        entry = asdict(self)
        score = {entry.pop("score_name"): entry.pop("score")}
        return {**entry, **score}


@dataclass(frozen=True)
class Limits:
    """`tolerance` holds for the formats in float32; the reduced ones may lose `max_metric_loss` of the accuracy."""

    max_batch_size: int
    tolerance: float
    max_metric_loss: float


@dataclass(frozen=True)
class Reference:
    """What the trained model answers to real samples: raw inputs `(N, ...)`, of which `truth` is known."""

    task: Task
    inputs: Array
    truth: Array
    first: Array  # the first output of all samples (N, K)
    by_batch: dict[int, tuple[Array, ...]]  # by batch size: the outputs for the first samples

    @classmethod
    def of(
        cls, model: Run, inputs: Array, truth: Array, max_batch_size: int, task: str = "classification"
    ) -> "Reference":
        starts = range(0, len(inputs), max_batch_size)
        first = np.concatenate([model(inputs[start : start + max_batch_size])[0] for start in starts])
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
    answers = run_isolated(format_name, path, reference.inputs, list(reference.by_batch), limits.max_batch_size)
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
    """Raises `GateFailure` for a file that is not what it should be, without running it."""
    try:
        exporter(format_name).check(path, contract)
    except (UserError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
        reason = " ".join(str(error).split())[:300]
        raise GateFailure(f"{path.name} cannot be read: {type(error).__name__}: {reason}") from error


def check_repeats(path: Path, answers: dict[str, Array], batch_sizes: list[int]) -> None:
    for size in batch_sizes:
        for first, second in (("output0", "repeat"), ("plain", "plain_repeat")):
            if not np.array_equal(answers[f"{first}_{size}"], answers[f"{second}_{size}"]):
                raise GateFailure(f"{path.name} answers the same batch of {size} differently a second time.")


def compare_batches(
    path: Path, answers: dict[str, Array], expected: dict[int, tuple[Array, ...]], tolerance: float, task: Task
) -> float:
    """The largest difference over all batch sizes, with and without the runtime's optimiser."""
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
    """Infinite and NaN are above any tolerance."""
    if not found <= tolerance or not np.isfinite(found):
        raise GateFailure(
            f"{path.name} differs from the trained model by {found:.2g} in the {where}; {tolerance:.2g} is allowed."
        )
