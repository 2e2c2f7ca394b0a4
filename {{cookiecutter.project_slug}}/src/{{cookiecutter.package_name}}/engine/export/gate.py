"""The gate: a file is published only if it agrees, in a fresh process, with the trained model on real samples."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, one_line
from ..inference.answers import predicted
from ..inference.runtime import batches, difference, first_samples
from ..inference.signature import Array, Arrays, Signature
from ..isolation import IsolatedError, run_isolated
from .contract import Contract, GateFailure, verified_batch_sizes
from .formats import FORMATS, Run, exporter
from .timing import median_latency_ms

if TYPE_CHECKING:
    from .network import Precise

NUM_COMPARED = 8  # samples, each alone and in larger batches
BETWEEN_BATCHES = {True: 1e-6, False: 1e-4}  # allowed in float64, whose outputs are rounded to float32, and in float32
# Of the network's own rounding, by which a file in float32 may be off: ONNX Runtime's was up to 9 times as large.
MULTIPLE = 16.0
# Of the spread of an output: what a reduced format may be off by, root mean square. An exchanged output is off by more.
REDUCED_SHARE = 0.5


def refuse_dependence(exact: "Precise", inputs: Arrays, batch_sizes: Sequence[int], where: str) -> None:
    """Raises `GateFailure` where a sample has other outputs in a batch than alone, or at a second time."""
    singles = list(zip(range(NUM_COMPARED), batches(inputs, 1), strict=False))
    try:
        alone = [exact.run(single) for _, single in singles]
    except (RuntimeError, ValueError, IndexError) as error:
        raise GateFailure(f"the network cannot answer a single sample: {one_line(error)}.") from error
    again = exact.run(singles[0][1])
    if not all(
        np.array_equal(output, again[name], equal_nan=output.dtype.kind == "f") for name, output in alone[0].items()
    ):
        raise GateFailure("the network answers a sample differently a second time: let it draw no random numbers.")
    for size in batch_sizes:
        whole = exact.run(first_samples(inputs, size))
        for place, outputs in enumerate(alone[:size]):
            for name, output in outputs.items():
                part = whole[name][place : place + 1]
                apart = difference(part, output) if _is_finite(output) else 0.0
                if not apart <= BETWEEN_BATCHES[exact.is_double]:
                    raise GateFailure(
                        f"the answer for a sample depends on the rest of its batch: '{name}' of sample {place} of the "
                        f"{where} differs by {apart:.2g} between a batch of {size} and the sample alone. Let no layer "
                        "compute over the first axis, as softmax(0), mean(0) or a BatchNorm without running statistics."
                    )


@dataclass(frozen=True)
class Parity:
    """How one file compares with the trained model in eager mode."""

    format: str
    file: str
    num_bytes: int
    largest_difference: float  # max |a - b| / max(1, |b|) over all outputs
    num_agreeing: int  # samples with the same answer
    num_samples: int  # that were compared
    latency_ms: float  # median of one sample, one thread
    metrics: dict[str, float] = field(default_factory=dict)  # of the test loop with this file in the place of `forward`

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """`tolerance` bounds the outputs of exact formats, `max_metric_loss` what reduced ones may lose of a metric."""

    max_batch_size: int
    tolerance: float
    max_metric_loss: float


@dataclass(frozen=True)
class Reference:
    """Real samples and the outputs of the trained model for them, by name.

    `items` are batches, first those of the sizes that are verified. `rounding` is what float32 itself does to each
    output.
    """

    signature: Signature
    sizes: list[int]
    items: Sequence[tuple[Arrays, Arrays]]
    rounding: dict[str, float]

    @classmethod
    def of(
        cls, run: Run, exact: "Precise", signature: Signature, recorded: Sequence[Arrays], max_batch_size: int
    ) -> "Reference":
        """Raises `GateFailure` for a model with answers that are not finite, or depend on the rest of a batch."""
        sizes = verified_batch_sizes(max_batch_size)
        refuse_dependence(exact, recorded[0], [2, sizes[-1]], "test split")
        inputs = [first_samples(recorded[0], size) for size in sizes]
        inputs += [part for batch in recorded for part in batches(batch, max_batch_size)]
        items = [(batch, run(batch)) for batch in inputs]
        rounding = dict.fromkeys((tensor.name for tensor in signature.outputs), 0.0)
        for batch, outputs in items[len(sizes) :]:
            backwards = run({name: array[::-1].copy() for name, array in batch.items()})
            precisely = exact.run(batch)
            for name, output in outputs.items():
                if not _is_finite(output):
                    raise GateFailure(
                        f"the trained model answers samples of the test split with NaN or infinity in '{name}': train "
                        "anew."
                    )
                others = (backwards[name][::-1], precisely[name])
                rounding[name] = max(rounding[name], *(difference(output, other) for other in others))
        return cls(signature, sizes, items, rounding)

    @property
    def num_samples(self) -> int:
        return sum(len(next(iter(outputs.values()))) for _, outputs in self.items[len(self.sizes) :])

    def tolerance(self, name: str, limits: "Limits") -> float:
        """Returns what an output of an exact format may differ by."""
        return max(limits.tolerance, MULTIPLE * self.rounding[name])


def admit(format_name: str, folder: Path, contract: Contract, reference: Reference, limits: Limits) -> Parity:
    """Raises `GateFailure` unless the format's file in `folder` gives the outputs of the trained model."""
    format, path = FORMATS[format_name], folder / FORMATS[format_name].file
    check_structure(format_name, path, contract)
    inputs = [batch for batch, _ in reference.items]
    answers = isolated_answers(format_name, path, inputs, len(reference.sizes))
    allowed = {name: reference.tolerance(name, limits) if format.exact else float("inf") for name in reference.rounding}
    expected = [outputs for _, outputs in reference.items]
    worst = compare(path, answers, expected, allowed, reference.sizes)
    num_sized, signature = len(reference.sizes), contract.signature
    if not format.exact:
        _refuse_far(path, answers.outputs[num_sized:], expected[num_sized:])
    agreeing = [
        agreeing_samples(signature, found, right)
        for found, right in zip(answers.outputs[num_sized:], expected[num_sized:], strict=True)
    ]
    return Parity(
        format=format_name,
        file=path.name,
        num_bytes=path.stat().st_size,
        largest_difference=worst,
        num_agreeing=int(sum(map(np.sum, agreeing))),
        num_samples=reference.num_samples,
        latency_ms=answers.latency_ms,
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


@dataclass(frozen=True)
class Answers:
    """The outputs of a file for each batch: of two runs, and of two without the runtime's optimiser."""

    outputs: list[Arrays]
    repeats: list[Arrays]
    plain: list[Arrays]
    plain_repeats: list[Arrays]
    latency_ms: float  # median of one sample


def isolated_answers(format_name: str, path: Path, inputs: Sequence[Arrays], num_repeated: int) -> Answers:
    """Runs one file in a process of its own, as a user of it would; the first `num_repeated` batches twice."""
    with tempfile.TemporaryDirectory(prefix="gate-") as scratch:
        for number, batch in enumerate(inputs):
            _save(Path(scratch, f"{number}.npz"), batch)
        sizes = {"num_batches": len(inputs), "num_repeated": num_repeated}
        try:
            latency_ms = run_isolated(write_answers, format_name=format_name, file=str(path), folder=scratch, **sizes)
        except IsolatedError as error:
            raise GateFailure(
                f"{path.name} cannot be loaded and run in a fresh process: {error}; leave {format_name} out of formats="
            ) from error
        kinds: list[list[Arrays]] = [
            [_load(Path(scratch, f"{kind}{number}.npz")) for number in range(count)]
            for kind, count in (("o", len(inputs)), ("r", num_repeated), ("p", len(inputs)), ("q", num_repeated))
        ]
        return Answers(kinds[0], kinds[1], kinds[2], kinds[3], latency_ms)


def write_answers(format_name: str, file: str, folder: str, num_batches: int, num_repeated: int) -> float:
    """The isolated part of `isolated_answers`, whose inputs and outputs lie in `folder`; returns the latency in ms."""
    load = exporter(format_name).load
    run, run_plain = load(Path(file)), load(Path(file), optimize=False)
    for number in range(num_batches):
        batch = _load(Path(folder, f"{number}.npz"))
        _save(Path(folder, f"o{number}.npz"), run(batch))
        _save(Path(folder, f"p{number}.npz"), run_plain(batch))
        if number < num_repeated:
            _save(Path(folder, f"r{number}.npz"), run(batch))
            _save(Path(folder, f"q{number}.npz"), run_plain(batch))
    return median_latency_ms(run, first_samples(_load(Path(folder, "0.npz")), 1))


def compare(
    path: Path, answers: Answers, expected: Sequence[Arrays], allowed: dict[str, float], sizes: Sequence[int]
) -> float:
    """Returns the largest difference over all outputs, with and without the runtime's optimiser.

    Raises `GateFailure` for one above what is allowed, and where a second run gave other outputs than the first.
    """
    for runs, repeats in ((answers.outputs, answers.repeats), (answers.plain, answers.plain_repeats)):
        for size, first, second in zip(sizes, runs, repeats, strict=False):
            if not all(np.array_equal(output, second[name]) for name, output in first.items()):
                raise GateFailure(f"{path.name} answers the same batch of {size} differently a second time.")
    worst = 0.0
    for runs, how in ((answers.outputs, ""), (answers.plain, " without the runtime's optimiser")):
        for number, (found, right) in enumerate(zip(runs, expected, strict=True)):
            where = f"at batch {sizes[number]}" if number < len(sizes) else "of the test split"
            for name, output in right.items():
                apart = difference(found[name], output)
                if not apart <= allowed[name] or not np.isfinite(apart):
                    _refuse(path, name, found[name], output, f"{where}{how}", allowed[name])
                worst = max(worst, apart)
    return worst


def _refuse(path: Path, name: str, found: Array, right: Array, where: str, allowed: float) -> None:
    apart, which = difference(found, right), ""
    if found.shape == right.shape:
        of_samples = np.array([difference(*pair) for pair in zip(found, right, strict=True)])
        num_agreeing = int(np.sum(of_samples <= allowed))
        which = f" in sample {int(np.argmax(of_samples))}, and {num_agreeing} of {len(right)} samples agree"
    raise GateFailure(
        f"{path.name} differs from the trained model by {apart:.2g} in '{name}' {where}{which}; {allowed:.2g} is "
        "allowed (export.tolerance)."
    )


def _refuse_far(path: Path, found: Sequence[Arrays], expected: Sequence[Arrays]) -> None:
    """Refuses a reduced file with an output that is another one altogether, as after two were exchanged."""
    for name in expected[0]:
        right = np.concatenate([outputs[name].ravel() for outputs in expected])
        if right.dtype.kind == "f" and (spread := float(right.std())) > 0:
            own = np.concatenate([outputs[name].ravel() for outputs in found])
            apart = float(np.sqrt(np.mean(np.square(own - right)))) if own.shape == right.shape else np.inf
            if not apart <= REDUCED_SHARE * spread:
                raise GateFailure(
                    f"{path.name} gives a '{name}' that is off by {apart:.2g} (root mean square) where its spread is "
                    f"{spread:.2g}: it is another output, or the format does not suit the network."
                )


def agreeing_samples(signature: Signature, found: Arrays, right: Arrays) -> Array:
    """Returns for each sample whether a user could not tell the answers apart, `(B,)`."""
    labelled = [tensor for tensor in signature.outputs if tensor.labels]
    agree = np.ones(len(right[signature.outputs[0].name]), bool)
    for tensor in labelled or signature.outputs:
        own, other = found[tensor.name], right[tensor.name]
        if tensor.labels or other.dtype.kind != "f":
            same = predicted(tensor, own) == predicted(tensor, other)
        else:
            spread = max(float(np.std(other)), 1e-12)
            same = np.abs(own - other) <= 5e-3 * np.maximum(np.abs(other), spread)
        agree &= same.reshape(len(same), -1).all(axis=1)
    return agree


def _is_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _save(path: Path, arrays: Arrays) -> None:
    np.savez(path, *arrays.values(), names=np.array(list(arrays)))


def _load(path: Path) -> dict[str, Array]:
    with np.load(path) as loaded:
        return {str(name): loaded[f"arr_{place}"] for place, name in enumerate(loaded["names"])}
