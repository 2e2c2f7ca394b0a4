"""Tables as arrays for the network: CSV, Parquet and JSON, for data sets, `predict` and the server."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .signature import Column, TensorSignature

Cells = npt.NDArray[Any]  # (N,) float64 with NaN for a gap, or text as objects with "" for a gap

SUFFIXES = (".csv", ".parquet", ".tsv")
PAGE = "form.html"
SEPARATORS = ",;\t|"
# Words for a missing number, in small letters; in a column of text only an empty cell is a gap.
GAPS = {"", "na", "n/a", "nan", "null", "none", "?"}
MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Table:
    """Cells by the names of their columns; `places` tells where each row stands in its file, as `line 3`."""

    cells: Mapping[str, Cells]
    places: Sequence[str]
    comma: bool = False  # numbers may have a decimal comma

    def column(self, name: str) -> Cells:
        if name not in self.cells:
            raise ValueError(f"it has no column '{name}', but {', '.join(self.cells)}")
        return self.cells[name]

    def without(self, rows: Sequence[int]) -> "Table":
        remaining = sorted(set(range(len(self.places))) - set(rows))
        cells = {name: cells[remaining] for name, cells in self.cells.items()}
        return Table(cells, [self.places[row] for row in remaining], self.comma)

    def numbers(self, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Returns a column's values `(N,)`, NaN for gaps, and a mask of cells that are no number within float32."""
        cells = self.column(name)
        values = cells if cells.dtype.kind == "f" else np.array([_number(word, self.comma) for word in cells])
        bad = np.isinf(values) | (np.abs(values) > MOST)
        return np.where(bad, np.nan, values), bad

    def words(self, name: str) -> list[str]:
        """Returns a column's cells as text: integers without a point, "" for a gap."""
        return [word if isinstance(word, str) else as_word(word) for word in self.column(name).tolist()]


def _number(word: str, comma: bool) -> float:
    """Parses a cell; NaN for a gap, infinity for text that is no number."""
    word = word.strip()
    if word.lower() in GAPS:
        return math.nan
    if comma and word.count(",") == 1 and "." not in word:
        word = word.replace(",", ".")
    try:
        return math.inf if "_" in word else float(word)
    except ValueError:
        return math.inf


def as_word(value: Any) -> str:
    """Writes a cell as text, so that a category is the same from CSV, Parquet and JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def read_table(file: Path) -> Table:
    """Raises `OSError` or `ValueError` for a file that is no table, damaged, or has rows of different lengths."""
    if file.suffix.lower() == ".parquet":
        return _parquet(file)
    return parse_csv(file.read_bytes())


def parse_csv(contents: bytes) -> Table:
    """Parses UTF-8, with or without a byte-order mark, separated by a comma, `;`, tab or `|`; names come first."""
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no CSV in UTF-8 ({error.reason} at byte {error.start})") from error
    if "\0" in text:
        raise ValueError("it is no CSV: it holds a byte 0")
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_names(names)
        rows, places = [], []
        for row in reader:
            if len(row) not in (0, len(names)):
                raise ValueError(f"line {reader.line_num} has {len(row)} cells, but the first line {len(names)}")
            if row:  # no empty line
                rows.append(row)
                places.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is no CSV: {error}") from error
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    cells = {name: np.array(column, dtype=object) for name, column in zip(names, columns, strict=True)}
    return Table(cells, places, comma=separator == ";")


def _separator(text: str) -> str:
    """Returns the separator that the first line holds most often outside of quotes."""
    unquoted = "".join(text.partition("\n")[0].split('"')[::2])
    counts = Counter(character for character in unquoted if character in SEPARATORS)
    return counts.most_common(1)[0][0] if counts else ","


def _check_names(names: Sequence[str]) -> None:
    if not any(names):
        raise ValueError("its first line names no columns")
    for name, count in Counter(names).items():
        if count > 1 or not name:
            raise ValueError(f"its first line has {count} columns that are named '{name}'")


def _parquet(file: Path) -> Table:
    import pyarrow as pa  # here: only Parquet needs it, and a server's environment does not have it
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except pa.ArrowException as error:
        raise ValueError(f"it is no Parquet file, or damaged ({str(error).splitlines()[0]})") from error
    _check_names(table.column_names)
    cells = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            values = column.cast(pa.float64(), safe=False).to_numpy()
            cells[name] = np.asarray(values, dtype=np.float64)
        else:
            cells[name] = np.array([as_word(value) for value in column.to_pylist()], dtype=object)
    return Table(cells, [f"row {number}" for number in range(1, table.num_rows + 1)])


def encode(table: Table, columns: Sequence[Column]) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """Returns `(N, C)`: numbers, NaN for a gap; codes of categories from 1 on, 0 for a category that is not known.

    The second value tells why a row cannot be used, by its number. Raises `ValueError` for a missing column.
    """
    values = np.zeros((len(table.places), len(columns)), dtype=np.float32)
    reasons: dict[int, str] = {}
    for position, column in enumerate(columns):
        if column.categories is not None:
            codes = {category: code for code, category in enumerate(column.categories, start=1)}
            values[:, position] = [codes.get(word, 0) for word in table.words(column.name)]
            continue
        values[:, position], bad = table.numbers(column.name)
        words = table.words(column.name) if bad.any() else []
        for row in np.flatnonzero(bad).tolist():
            reasons.setdefault(row, f"{table.places[row]}: {column.name}='{words[row]}' is no number")
    return values, reasons


def read(path: Path, tensor: TensorSignature) -> Iterator[npt.NDArray[Any] | str]:
    """Yields each row as `(C,)`, or the reason why it cannot be used."""
    values, reasons = encode(read_table(path), tensor.columns)
    if not len(values):
        raise ValueError("it holds no row")
    for row, sample in enumerate(values):
        yield reasons.get(row, sample)


def read_body(body: bytes, tensor: TensorSignature) -> npt.NDArray[Any]:
    """Returns a CSV with a line of names and one row as `(1, C)`."""
    return _only_row(parse_csv(body), tensor)


def read_object(row: Mapping[str, Any], tensor: TensorSignature) -> npt.NDArray[Any]:
    """Returns values by the names of the columns, null for a gap, as `(1, C)`."""
    cells = {}
    for column in tensor.columns:
        if column.name not in row:
            raise ValueError(f"'{column.name}' is missing: send null where it is not known")
        value = row[column.name]
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"'{column.name}' is neither a number nor text")
        words = [as_word(value)]
        if isinstance(value, bool):  # a CSV may have any of True, true and TRUE
            words += [words[0].lower(), words[0].upper()]
        known = [word for word in words if word in (column.categories or ())]
        cells[column.name] = np.array([*known, *words][:1], dtype=object)
    return _only_row(Table(cells, ["the row"]), tensor)


def _only_row(table: Table, tensor: TensorSignature) -> npt.NDArray[Any]:
    values, reasons = encode(table, tensor.columns)
    if len(values) != 1:
        raise ValueError(f"it holds {len(values)} rows: send one")
    if reasons:
        raise ValueError(reasons[0])
    return values
