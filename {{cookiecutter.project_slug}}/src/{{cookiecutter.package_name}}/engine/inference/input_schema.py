"""The input of a network, and the module that reads files into it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from ..errors import UserError

Array = npt.NDArray[Any]

ARRAY_SUFFIX = ".npy"
# From numpy's names of types to those of the Open Inference Protocol, which Triton uses too.
TYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}


@dataclass(frozen=True)
class Column:
    """A column of a table; `gaps` tells whether a value was missing in the training split.

    `categories` stand in the order of their codes, which begin at 1; None for a column of numbers.
    """

    name: str
    categories: tuple[str, ...] | None = None
    gaps: bool = False

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Column":
        """Reads an entry of a manifest or a DataSpec."""
        categories = entry["categories"]
        return cls(entry["name"], None if categories is None else tuple(categories), entry["gaps"])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"categories": None if self.categories is None else list(self.categories)}


@dataclass(frozen=True)
class InputSchema:
    """Shape, dtype and bounds of one sample of raw input, without the batch axis.

    A sample of a table has one value for each of `columns`, and NaN where a value is missing.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    range: tuple[float, float]
    columns: tuple[Column, ...] = ()

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "InputSchema":
        """Reads the entry of an input in a manifest."""
        columns = tuple(Column.from_dict(column) for column in entry.get("columns", ()))
        return cls(tuple(entry["shape"][1:]), np.dtype(entry["dtype"]), tuple(entry["range"]), columns)

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    @cached_property
    def integer_bounds(self) -> tuple[float, float]:
        """The smallest and the largest value of an integer dtype; NaN for other dtypes, so that no comparison holds."""
        if self.dtype.kind not in "iu":
            return np.nan, np.nan
        return np.iinfo(self.dtype).min, np.iinfo(self.dtype).max

    def is_in_range(self, values: Array) -> bool:
        (low, high), (least, most) = self.range, self.integer_bounds
        if low <= least and most <= high:  # as for pixels from 0 to 255
            return True
        known = values[~np.isnan(values)] if self.columns else values
        return not known.size or bool(low <= known.min() and known.max() <= high)  # false for a NaN

    @property
    def reader(self) -> "Reader":
        """The module that reads files; imported here, since a project has only the one for its own kind of data."""
        kind, name = ("tables", ".tables") if self.columns else ("pictures", ".images")
        try:
            return cast(Reader, import_module(name, __package__))
        except ModuleNotFoundError as error:
            raise UserError(f"the model takes {kind}, which this project does not read ({error}).") from error

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of files that hold samples."""
        return (*self.reader.SUFFIXES, ARRAY_SUFFIX)


class Reader(Protocol):
    """The module `images` or `tables`; its functions raise `OSError` or `ValueError` for input that cannot be used."""

    SUFFIXES: Sequence[str]
    PAGE: str  # the server's page for people

    def read(self, path: Path, schema: InputSchema) -> Iterable[Array | str]: ...
    def read_body(self, body: bytes, schema: InputSchema) -> Array: ...
    def read_object(self, row: Mapping[str, Any], schema: InputSchema) -> Array: ...
