"""The gate: a file is published only if it agrees, in a fresh process, with the trained model on real samples."""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UserError, one_line
from ..inference.runtime import difference
from ..inference.tasks import TASKS, Task
from ..isolation import IsolatedError, run_isolated
from .formats import FORMATS, Array, Run, exporter, first_outputs, first_samples
from .signature import Contract, GateFailure, verified_batch_sizes

if TYPE_CHECKING:
    from torch import nn

# A second output may differ by this much from what follows from the first one: 16 bits hold three digits.
FOLLOWING_TOLERANCE = 5e-3
NUM_COMPARED = 8  # samples, each alone and in larger batches
BETWEEN_BATCHES = {True: 1e-6, False: 1e-4}  # allowed in float64, whose outputs are rounded to float32, and in float32
# Of the network's own rounding, by which a file in float32 may be off: ONNX Runtime's was up to 9 times as large.
MULTIPLE = 16.0
NUM_TIMED, MAX_SECONDS = 200, 2.0
INPUTS, ANSWERS = "inputs.npy", "answers.npz"


class Precise(NamedTuple):
    """`run` computes in float64, or in float32 where the network's own code takes nothing else."""

    run: Run
    is_double: bool


def precise(network: "nn.Module", eager: "Callable[[nn.Module], Run]", inputs: Array) -> Precise:
    try:
        run = eager(copy.deepcopy(network).double())
        run(inputs[:1])
    except (RuntimeError, ValueError):
        return Precise(eager(network), False)
    return Precise(run, True)


def other_roundings(run: Run, exact: Precise, inputs: Array, batch_size: int) -> list[Array]:
    """Returns the first output `(N, K)` of all inputs as other orders of the same sums give it."""
    backwards = first_outputs(run, inputs[::-1].copy(), batch_size)[::-1]
    return [backwards, first_outputs(exact.run, inputs, batch_size)]


def refuse_dependence(exact: Precise, inputs: Array, batch_sizes: Sequence[int], where: str) -> None:
    """Raises `GateFailure` where a sample has other outputs in a batch than alone, or at a second time."""
    try:
        alone = [exact.run(inputs[place : place + 1]) for place in range(min(NUM_COMPARED, len(inputs)))]
    except (RuntimeError, ValueError) as error:
        raise GateFailure(f"the network cannot answer a single sample: {one_line(error)}.") from error
    if not all(np.array_equal(*pair, equal_nan=True) for pair in zip(alone[0], exact.run(inputs[:1]), strict=True)):
        raise GateFailure("the network answers a sample differently a second time: let it draw no random numbers.")
    for size in batch_sizes:
        whole = exact.run(first_samples(inputs, size))
        for place, outputs in enumerate(alone[:size]):
            parts = [output[place : place + 1] for output in whole]
            apart = max(map(difference, parts, outputs)) if np.isfinite(outputs[0]).all() else 0.0
            if not apart <= BETWEEN_BATCHES[exact.is_double]:
                raise GateFailure(
                    f"the answer for a sample depends on the rest of its batch: that for sample {place} of the {where} "
                    f"differs by {apart:.2g} between a batch of {size} and the sample alone. Let no layer compute over "
                    "the first axis, as softmax(0), mean(0) or a BatchNorm without running statistics."
                )


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
    """The outputs of the trained model for real samples: raw inputs `(N, ...)` with their labels or targets `truth`.

    `rounding` and `score_rounding` are what float32 itself does to the outputs and to the score.
    """

    task: Task
    inputs: Array
    truth: Array
    first: Array  # the first output of all samples (N, K)
    by_batch: dict[int, tuple[Array, ...]]  # by batch size: the outputs for the first samples
    rounding: float = 0.0
    score_rounding: float = 0.0

    @classmethod
    def of(
        cls,
        model: Run,
        exact: Precise,
        inputs: Array,
        truth: Array,
        max_batch_size: int,
        task: str = "classification",
    ) -> "Reference":
        """Raises `GateFailure` for a model with answers that are not finite, or depend on the rest of a batch."""
        sizes = verified_batch_sizes(max_batch_size)
        refuse_dependence(exact, inputs, [2, sizes[-1]], "test split")
        first = first_outputs(model, inputs, max_batch_size)
        if not np.isfinite(first).all():
            raise GateFailure("the trained model answers samples of the test split with NaN or infinity: train anew.")
        by_batch = {size: model(first_samples(inputs, size)) for size in sizes}
        others, score = other_roundings(model, exact, inputs, max_batch_size), TASKS[task].score
        following = TASKS[task].following  # a softmax has its own scale
        pairs = [
            pair for other in others for pair in ((first, other), *zip(following(first), following(other), strict=True))
        ]
        rounding = max(difference(*pair) for pair in pairs)
        score_rounding = max(abs(score(first, truth) - score(other, truth)) for other in others)
        return cls(TASKS[task], inputs, truth, first, by_batch, rounding, score_rounding)

    @property
    def score(self) -> float:
        return self.task.score(self.first, self.truth)

    def tolerance(self, limits: "Limits") -> float:
        """Returns what the outputs of an exact format may differ by."""
        return max(limits.tolerance, MULTIPLE * self.rounding)


def admit(format_name: str, folder: Path, contract: Contract, reference: Reference, limits: Limits) -> Parity:
    """Raises `GateFailure` unless the format's file in `folder` is the trained model."""
    format, path = FORMATS[format_name], folder / FORMATS[format_name].file
    check_structure(format_name, path, contract)
    answers = isolated_answers(format_name, path, reference.inputs, list(reference.by_batch), limits.max_batch_size)
    check_repeats(path, answers, list(reference.by_batch))
    tolerance = reference.tolerance(limits) if format.exact else float("inf")
    task = reference.task
    worst = compare_batches(path, answers, reference.by_batch, tolerance, task)
    first, num_agreeing, where = answers["first"], 0, f"{task.outputs[0]} of the test split"
    if first.shape == reference.first.shape:
        num_agreeing, apart = task.agreeing(first, reference.first), list(map(difference, first, reference.first))
        where = f"{task.outputs[0]} of sample {int(np.argmax(apart))} of the test split"
        where += f", where {num_agreeing} of {len(first)} answers agree"
    over_all = difference(first, reference.first)
    refuse_above(tolerance, path, over_all, where)
    scores = {name: task.score(answers[name], reference.truth) for name in ("plain", "first")}
    for name, what in (("plain", " without the runtime's optimiser"), ("first", "")):
        lost, allowed = reference.score - scores[name], limits.max_metric_loss
        rounding = max(task.rounding, MULTIPLE * reference.score_rounding)
        if not (abs(lost) <= rounding if format.exact else lost <= allowed + 1e-9):
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
        num_agreeing=num_agreeing,
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
            raise GateFailure(
                f"{path.name} cannot be loaded and run in a fresh process: {error}; leave {format_name} out of formats="
            ) from error
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
            f"{path.name} differs from the trained model by {found:.2g} in the {where}; {tolerance:.2g} is allowed "
            "(export.tolerance)."
        )
