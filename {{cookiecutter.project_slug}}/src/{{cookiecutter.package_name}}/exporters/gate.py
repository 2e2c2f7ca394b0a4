"""The gate: no file is published unless it was loaded afresh and agreed with the trained model on real samples."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..refusal import Refusal
from ..serving.runtime import difference
from . import FORMATS, Array, exporter
from .contract import Contract, GateFailure, verified_batch_sizes
from .fresh import first_samples, run_afresh

# `softmax(logits)` may differ by this much from the probabilities of a reduced format: 16 bits hold three digits.
SOFTMAX_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Parity:
    """How one file compares with the trained model in eager mode."""

    format: str
    file: str
    num_bytes: int
    largest_difference: float  # max |a - b| / max(1, |b|) over all tried batches and the test split
    num_agreeing: int  # test samples with the same predicted label
    num_samples: int
    accuracy: float  # on the test split
    latency_ms: float  # median of one sample, one thread


@dataclass(frozen=True)
class Limits:
    """`tolerance` holds for the formats in float32; the reduced ones may lose `max_metric_loss` of the accuracy."""

    max_batch_size: int
    tolerance: float
    max_metric_loss: float


@dataclass(frozen=True)
class Reference:
    """What the trained model answers to real samples: raw inputs `(N, ...)` and labels `(N,)`."""

    inputs: Array
    labels: Array
    logits: Array  # (N, K)
    by_batch: dict[int, tuple[Array, Array]]  # by batch size: logits and probabilities of the first samples

    @classmethod
    def of(
        cls, model: Callable[[Array], tuple[Array, Array]], inputs: Array, labels: Array, max_batch_size: int
    ) -> "Reference":
        starts = range(0, len(labels), max_batch_size)
        logits = np.concatenate([model(inputs[start : start + max_batch_size])[0] for start in starts])
        if not np.isfinite(logits).all():
            raise GateFailure("the trained model answers samples of the test split with NaN or infinity: train anew.")
        sizes = verified_batch_sizes(max_batch_size)
        return cls(inputs, labels, logits, {size: model(first_samples(inputs, size)) for size in sizes})

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.logits.argmax(axis=1) == self.labels))


def admit(format_name: str, folder: Path, contract: Contract, reference: Reference, limits: Limits) -> Parity:
    """Raises `GateFailure` unless the format's file in `folder` is the trained model."""
    format, path = FORMATS[format_name], folder / FORMATS[format_name].file
    check_structure(format_name, path, contract)
    answers = run_afresh(format_name, path, reference.inputs, list(reference.by_batch), limits.max_batch_size)
    check_repeats(path, answers, list(reference.by_batch))
    tolerance = limits.tolerance if format.exact else float("inf")
    worst = compare_batches(path, answers, reference.by_batch, tolerance)
    over_all = difference(answers["logits"], reference.logits)
    refuse_above(tolerance, path, over_all, "logits of the test split")
    for name, what in (("plain", " without the runtime's optimiser"), ("logits", "")):
        accuracy = float(np.mean(answers[name].argmax(axis=1) == reference.labels))
        lost, allowed = reference.accuracy - accuracy, 0.0 if format.exact else limits.max_metric_loss
        if not lost <= allowed + 1e-9 or (format.exact and lost):
            raise GateFailure(
                f"{path.name} has accuracy {accuracy:.4f} on the test split{what}, the trained model "
                f"{reference.accuracy:.4f}; {'none' if format.exact else f'export.max_metric_loss={allowed:g}'} "
                "may be lost."
            )
    return Parity(
        format=format_name,
        file=path.name,
        num_bytes=path.stat().st_size,
        largest_difference=max(worst, over_all),
        num_agreeing=int(np.sum(answers["logits"].argmax(axis=1) == reference.logits.argmax(axis=1))),
        num_samples=len(reference.labels),
        accuracy=accuracy,
        latency_ms=float(answers["latency_ms"]),
    )


def check_structure(format_name: str, path: Path, contract: Contract) -> None:
    """Raises `GateFailure` for a file that is not what it should be, without running it."""
    try:
        exporter(format_name).check(path, contract)
    except (Refusal, OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
        reason = " ".join(str(error).split())[:300]
        raise GateFailure(f"{path.name} cannot be read: {type(error).__name__}: {reason}") from error


def check_repeats(path: Path, answers: dict[str, Array], batch_sizes: list[int]) -> None:
    for size in batch_sizes:
        for first, second in (("logits", "repeat"), ("plain", "plain_repeat")):
            if not np.array_equal(answers[f"{first}_{size}"], answers[f"{second}_{size}"]):
                raise GateFailure(f"{path.name} answers the same batch of {size} differently a second time.")


def compare_batches(
    path: Path, answers: dict[str, Array], expected: dict[int, tuple[Array, Array]], tolerance: float
) -> float:
    """The largest difference over all batch sizes, with and without the runtime's optimiser."""
    worst = 0.0
    for size, (logits, probabilities) in expected.items():
        for name, right in (("logits", logits), ("probabilities", probabilities), ("plain", logits)):
            found = difference(answers[f"{name}_{size}"], right)
            what = "logits without the runtime's optimiser" if name == "plain" else name
            refuse_above(tolerance, path, found, f"{what} at batch {size}")
            worst = max(worst, found)
        own = _softmax(answers[f"logits_{size}"])
        if not difference(answers[f"probabilities_{size}"], own) <= SOFTMAX_TOLERANCE:
            raise GateFailure(f"{path.name} gives probabilities that are not those of its logits at batch {size}.")
    return worst


def refuse_above(tolerance: float, path: Path, found: float, where: str) -> None:
    """Infinite and NaN are above any tolerance."""
    if not found <= tolerance or not np.isfinite(found):
        raise GateFailure(
            f"{path.name} differs from the trained model by {found:.2g} in the {where}; {tolerance:.2g} is allowed."
        )


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
