"""Finds the signature of a network: names, types and free axes, from batches of real samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import one_line
from ..inference.signature import BATCH, TYPES, Array, Arrays, Column, Signature, TensorSignature
from ..spec import Deployed, Input
from .contract import GateFailure
from .formats import Run
from .loops import Recording

Shapes = Sequence[Mapping[str, tuple[int, ...]]]
MIN_SIZES = 3  # at which two axes must agree to be taken for one


def signature_of(run: Run, recording: Recording, described: Deployed, place: str, max_batch_size: int) -> Signature:
    """Returns the signature of a network that `run` computes; raises `GateFailure` for one that cannot be exported.

    An axis beside the batch is free if its size differs between the recorded batches, or if `deployed()` names it.
    """
    first, inputs = recording.batches[0], described.inputs
    if unknown := [name for name in inputs if name not in first]:
        raise GateFailure(
            f"deployed() describes the input '{unknown[0]}', which is no argument of {place}: it is called with "
            f"{', '.join(first)}."
        )
    for name, array in first.items():
        if any(len(shapes[name]) != array.ndim for shapes in recording.shapes) or not array.ndim:
            raise GateFailure(f"'{name}' has a first axis for the samples in some batches only: give it one, always.")
    given = {name: dict(about.axes) for name, about in inputs.items()}
    sides = _sides_of_inputs(recording.shapes, given, MIN_SIZES)
    try:
        probes = _probes(run, recording.batches[0], sides)
    except GateFailure:  # two axes that agreed by chance, or one: the network tells
        sides = _sides_of_inputs(recording.shapes, given, min_sizes=2)
        probes = _probes(run, recording.batches[0], sides)
    outputs = [*((batch, run(batch)) for batch in recording.batches[:4]), *probes]
    _check_names(first, outputs[0][1], described, place)
    taken = [
        TensorSignature(name, _dtype(name, array), sides[name], **_about_input(inputs.get(name)))
        for name, array in first.items()
    ]
    for tensor in taken:
        if not all(tensor.is_in_range(batch[tensor.name]) for batch in recording.batches):
            raise GateFailure(f"deployed() gives '{tensor.name}' the range {tensor.range}, which real samples exceed.")
    named = []
    for name, array in outputs[0][1].items():
        shape = _sides_of_output(name, [(batch, found[name]) for batch, found in outputs], sides)
        named.append(TensorSignature(name, _dtype(name, array), shape, **_about(name, array, described)))
    return Signature(tuple(taken), tuple(named), max_batch_size)


def _sides_of_inputs(
    shapes: Shapes, given: Mapping[str, Mapping[int, str]], min_sizes: int
) -> dict[str, tuple[int | str, ...]]:
    """Names the free axes; two share a name if they agree at so many different sizes."""
    names: dict[tuple[int, ...], str] = {}
    found: dict[str, tuple[int | str, ...]] = {}
    for name, first in shapes[0].items():
        sides: list[int | str] = [BATCH]
        for axis in range(1, len(first)):
            sizes = tuple(of_batch[name][axis] for of_batch in shapes)
            side: int | str = sizes[0]
            if axis in given.get(name, {}):
                side = given[name][axis]
            elif len(set(sizes)) > 1:
                side = names.get(sizes, "") if len(set(sizes)) >= min_sizes else ""
                side = side or f"{name}_{axis}"
            if isinstance(side, str):
                names.setdefault(sizes, side)
            sides.append(side)
        found[name] = tuple(sides)
    return found


def _probes(
    run: Run, batch: Arrays, sides: Mapping[str, tuple[int | str, ...]]
) -> list[tuple[Arrays, dict[str, Array]]]:
    """Runs the first batch cut by one along each free axis, so that its size differs at least once."""
    free = {side for of_input in sides.values() for side in of_input[1:] if isinstance(side, str)}
    found: list[tuple[Arrays, dict[str, Array]]] = []
    for side in sorted(free):
        cut = {}
        for name, array in batch.items():
            places = tuple(slice(0, max(1, size - 1)) if own == side else slice(None)
                           for size, own in zip(array.shape, sides[name], strict=True))  # fmt: skip
            cut[name] = array[places]
        try:
            found.append((cut, run(cut)))
        except (RuntimeError, ValueError, IndexError) as error:
            raise GateFailure(
                f"the network takes no other size along '{side}' than that of its samples: {one_line(error)}."
            ) from error
    return found


def _sides_of_output(
    name: str, found: Sequence[tuple[Arrays, Array]], sides: Mapping[str, tuple[int | str, ...]]
) -> tuple[int | str, ...]:
    """A size that differs between batches has the name of the input's axis of that size, or one of its own."""
    sizes_of_inputs: dict[tuple[int, ...], str] = {}
    for own, of_input in sides.items():
        for axis, side in enumerate(of_input[1:], start=1):
            if isinstance(side, str):
                sizes_of_inputs.setdefault(tuple(batch[own].shape[axis] for batch, _ in found), side)
    shape: list[int | str] = [BATCH]
    for axis in range(1, found[0][1].ndim):
        sizes = tuple(array.shape[axis] for _, array in found)
        shape.append(sizes[0] if len(set(sizes)) == 1 else sizes_of_inputs.get(sizes, f"{name}_{axis}"))
    return tuple(shape)


def _check_names(inputs: Arrays, outputs: Arrays, described: Deployed, place: str) -> None:
    if unknown := [name for name in described.outputs if name not in outputs]:
        raise GateFailure(
            f"deployed() describes the output '{unknown[0]}', which {place} does not return: it returns "
            f"{', '.join(outputs)}."
        )
    if twice := inputs.keys() & outputs.keys():
        raise GateFailure(f"'{min(twice)}' is the name of an input and of an output: name the output otherwise.")
    if isinstance(described.result, str) and described.result not in outputs:
        raise GateFailure(
            f"deployed() gives result='{described.result}', which is no output: {', '.join(outputs)} are."
        )


def _about_input(about: Input | None) -> dict[str, Any]:
    if about is None:
        return {}
    columns = tuple(map(Column.from_dict, about.columns))
    known = {"range": about.range, "columns": columns, "bit_depth": about.bit_depth}
    return {**known, "mean": about.mean, "std": about.std}


def _about(name: str, array: Array, described: Deployed) -> dict[str, Any]:
    about = described.outputs.get(name)
    if about is None:
        return {}
    if about.labels and array.dtype.kind == "f" and (array.ndim < 2 or array.shape[1] != len(about.labels)):
        raise GateFailure(f"deployed() gives '{name}' {len(about.labels)} labels, but it has the shape {array.shape}.")
    return {field: value for field, value in vars(about).items() if field != "double"}


def _dtype(name: str, array: Array) -> str:
    if array.dtype.name not in TYPES:
        raise GateFailure(f"'{name}' has the type {array.dtype}, which no format of a bundle holds: convert it.")
    return str(np.dtype(array.dtype).name)
