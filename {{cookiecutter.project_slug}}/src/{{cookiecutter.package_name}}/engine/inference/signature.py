"""The named tensors that a model takes and gives, and what is known about each of them."""

import math
from collections.abc import Iterable, KeysView, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from ..errors import UserError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

BATCH = "batch"  # the first axis of every tensor of a model that takes batches
STRING = "string"
ARRAY_SUFFIXES = (".npy", ".npz")
# From numpy's names of types to those of the Open Inference Protocol, which Triton uses too.
TYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    STRING: "BYTES",
}


@dataclass(frozen=True)
class Column:
    """A column of a table; `gaps` tells whether a value was missing in the training split.

    `categories` stand in the order of their codes, which begin at 1; None for a column of numbers. A number is taken
    less `offset`, because float32 would make numbers near to each other equal if they are large. `decimal` is the
    decimal sign of training, which decides how text is read that allows two readings. In a `boolean` column, whose
    numbers are 0 and 1, `true` and `false` stand for them.
    """

    name: str
    categories: tuple[str, ...] | None = None
    gaps: bool = False
    offset: int | float = 0
    decimal: str = ""
    boolean: bool = False

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Column":
        """Reads an entry of a manifest or a DataSpec."""
        categories = entry["categories"]
        return cls(**{**entry, "categories": None if categories is None else tuple(categories)})

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry, without what is not needed to read the column."""
        always = {"name", "categories", "gaps"}
        entry = {name: value for name, value in asdict(self).items() if value or name in always}
        return {**entry, "categories": None if self.categories is None else list(self.categories)}


@dataclass(frozen=True)
class TensorSignature:
    """A tensor. `shape` has a number for each fixed axis and a name for each free one; one name stands for one size.

    `range` bounds the values of an input; `columns` are those of a table, in whose rows NaN is a missing value;
    `bit_depth` is the number of bits that pictures of more than 8 bits use, if it is not 16.
    `labels` stand for the places along the second axis of an output, or for its whole numbers if it has an integer
    type; with `multiple` a sample may have any number of them. `mean` and `std` (one figure for each place along the
    second axis) and `label_counts` are those of the training split.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    range: tuple[float, float] | None = None
    columns: tuple[Column, ...] = ()
    bit_depth: int = 0
    labels: tuple[str, ...] = ()
    multiple: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    label_counts: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "TensorSignature":
        """Reads an entry of a manifest."""
        columns = tuple(Column.from_dict(column) for column in entry.get("columns", ()))
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
        }
        given["columns"] = columns
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of a manifest, without what is not known."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        known["columns"] = [column.to_dict() for column in self.columns]
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
        return {name: value for name, value in plain.items() if value or name == "shape"}

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(object if self.dtype == STRING else self.dtype)

    @property
    def sample_shape(self) -> tuple[int | str, ...]:
        """The shape without the batch axis."""
        return self.shape[1:]

    @cached_property
    def integer_bounds(self) -> tuple[float, float]:
        """The smallest and the largest value of an integer dtype; NaN for other dtypes, so that no comparison holds."""
        if self.numpy_dtype.kind not in "iu":
            return np.nan, np.nan
        return np.iinfo(self.numpy_dtype).min, np.iinfo(self.numpy_dtype).max

    def is_in_range(self, values: Array) -> bool:
        if self.range is None:
            return True
        (low, high), (least, most) = self.range, self.integer_bounds
        if low <= least and most <= high:  # as for pixels from 0 to 255
            return True
        known = values[~np.isnan(values)] if self.columns else values
        return not known.size or bool(low <= known.min() and known.max() <= high)  # false for a NaN

    def bind(self, shape: Sequence[int], sizes: dict[str, int]) -> None:
        """Raises `ValueError` for a shape that the tensor cannot have; adds the sizes of its free axes to `sizes`."""
        if len(shape) == len(self.shape):
            for found, side in zip(shape, self.shape, strict=True):
                if found == side:
                    continue
                if isinstance(side, int):
                    break
                if sizes.setdefault(side, found) != found:
                    raise ValueError(
                        f"'{self.name}' has {found} along its axis '{side}', but another input has {sizes[side]}: they "
                        "must agree"
                    )
            else:
                return
        given, expected = (f"[{', '.join(map(str, sides))}]" for sides in (shape, self.shape))
        raise ValueError(f"'{self.name}' has the shape {given[:60]}, but this model takes {expected}")


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model. Without a `max_batch_size`, which is 0 then, no axis is a batch."""

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    max_batch_size: int

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> "Signature":
        inputs, outputs = (tuple(map(TensorSignature.from_dict, manifest[kind])) for kind in ("inputs", "outputs"))
        if not inputs or not outputs:
            raise ValueError("it has no inputs or no outputs")
        return cls(inputs, outputs, manifest["max_batch_size"])

    @cached_property
    def _names(self) -> KeysView[str]:
        return dict.fromkeys(tensor.name for tensor in self.inputs).keys()

    @cached_property
    def max_elements(self) -> int | None:
        """The most numbers that a batch of inputs holds; None if a free axis is beside the batch."""
        sides = [1]
        for tensor in self.inputs:
            rest = tensor.sample_shape if self.max_batch_size else tensor.shape
            if any(isinstance(side, str) for side in rest):
                return None
            sides.append(math.prod(cast(tuple[int, ...], rest)))
        return (self.max_batch_size or 1) * sum(sides[1:])

    def bind(self, arrays: Arrays) -> dict[str, int]:
        """Returns the sizes of the free axes; raises `ValueError` for arrays that the model does not take."""
        sizes: dict[str, int] = {}
        if arrays.keys() != self._names:
            name = min(arrays.keys() ^ self._names)
            kind = "not known" if name in arrays else "missing"
            raise ValueError(f"the input '{name}' is {kind}: this model takes {', '.join(self._names)}")
        for tensor in self.inputs:
            array = arrays[tensor.name]
            if array.dtype != tensor.numpy_dtype:
                raise ValueError(f"'{tensor.name}' is {array.dtype}, but this model takes {tensor.dtype}")
            tensor.bind(array.shape, sizes)
        if self.max_batch_size and not 1 <= sizes[BATCH] <= self.max_batch_size:
            raise ValueError(f"a batch of {sizes[BATCH]} is out of range: this model takes 1 to {self.max_batch_size}")
        return sizes

    @property
    def person_input(self) -> TensorSignature | None:
        """The only input, if a person can give it as a file: a picture, or the row of a table."""
        (first, *others) = self.inputs
        return None if others or not self.max_batch_size or kind_of(first) is None else first

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files that hold samples."""
        tensor = self.person_input
        return (*(reader_of(tensor).SUFFIXES if tensor else ()), *ARRAY_SUFFIXES)


def kind_of(tensor: TensorSignature) -> str | None:
    """Returns `tables` or `images`, the module that reads the files of such an input, or None."""
    if tensor.columns:
        return "tables"
    is_picture = len(tensor.shape) == 4 and tensor.shape[1] in (1, 3) and tensor.range is not None
    return "images" if is_picture and all(isinstance(side, int) for side in tensor.sample_shape) else None


class ReadSamples(NamedTuple):
    """Values `(B, ...)`, and for each sample the values that training did not see, by the names of their columns."""

    values: Array
    never_seen: Sequence[Mapping[str, str]]


class Reader(Protocol):
    """The module `images` or `tables`; its functions raise `OSError` or `ValueError` for input that cannot be used."""

    SUFFIXES: Sequence[str]
    PAGE: str  # the server's page for people

    def is_readable(self, path: Path) -> bool: ...
    def read(self, path: Path, tensor: TensorSignature) -> Iterable[Array | str]: ...
    def read_body(self, body: bytes, tensor: TensorSignature) -> ReadSamples: ...
    def read_object(self, row: Mapping[str, Any], tensor: TensorSignature) -> ReadSamples: ...


def reader_of(tensor: TensorSignature) -> Reader:
    """Imports the module that reads files; a project has only the one for its own kind of data."""
    kind = kind_of(tensor)
    try:
        return cast(Reader, import_module(f".{kind}", __package__))
    except ModuleNotFoundError as error:
        raise UserError(f"the model takes {kind}, which this project does not read ({error}).") from error
