"""What a network takes, and which module reads files into it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from ..errors import UserError

Array = npt.NDArray[Any]

ARRAY = ".npy"


@dataclass(frozen=True)
class Column:
    """Of a table: `categories` in the order of their codes, which begin at 1; None for a column of numbers.

    `gaps` says whether a value was missing in the training split.
    """

    name: str
    categories: tuple[str, ...] | None = None
    gaps: bool = False

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Column":
        """From a manifest or a DataSpec."""
        categories = entry["categories"]
        return cls(entry["name"], None if categories is None else tuple(categories), entry["gaps"])

    def to_dict(self) -> dict[str, Any]:
        categories = None if self.categories is None else list(self.categories)
        return {"name": self.name, "categories": categories, "gaps": self.gaps}


@dataclass(frozen=True)
class InputSchema:
    """One sample is `shape`, of `dtype`, its values from `range[0]` to `range[1]`.

    That of a table has a value for each of `columns`, and NaN where one is missing.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    range: tuple[float, float]
    columns: tuple[Column, ...] = ()

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "InputSchema":
        """From the input in a manifest."""
        columns = tuple(Column.of(column) for column in entry.get("columns", ()))
        return cls(tuple(entry["shape"][1:]), np.dtype(entry["dtype"]), tuple(entry["range"]), columns)

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    def admits(self, values: Array) -> bool:
        low, high = self.range
        known = values[~np.isnan(values)] if self.columns else values
        return not known.size or bool(low <= known.min() and known.max() <= high)  # of a NaN, neither holds

    @property
    def reader(self) -> "Reader":
        """The module that reads files; a project has the one for its own kind of data."""
        kind = "tables" if self.columns else "pictures"
        try:
            return cast(Reader, import_module(".tables" if self.columns else ".images", __package__))
        except ModuleNotFoundError as error:
            raise UserError(f"the model takes {kind}, which this project does not read ({error}).") from error

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of files that hold samples."""
        return (*self.reader.SUFFIXES, ARRAY)


class Reader(Protocol):
    """The module `pictures` or `tables`: each raises `OSError` or `ValueError` for what cannot be used."""

    SUFFIXES: Sequence[str]
    PAGE: str  # that the server shows

    def read(self, path: Path, accepted: InputSchema) -> Iterable[Array | str]:
        """Samples, each of `accepted.shape`, or why one cannot be used."""

    def read_body(self, body: bytes, accepted: InputSchema) -> Array:
        """The contents of a file that holds one sample, as `(1, *accepted.shape)`."""

    def read_object(self, row: Mapping[str, Any], accepted: InputSchema) -> Array:
        """A JSON object that describes one sample, as `(1, *accepted.shape)`."""
