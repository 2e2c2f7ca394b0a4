"""Tables as arrays for the network: CSV, Parquet and JSON, for data sets, `predict` and the server."""

import codecs
import csv
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import first_of
from .cells import TRUTHS, Vocabulary, as_word
from .numbers import GAPS, Number, decimal_of, read_number
from .signature import Array, Column, ReadSamples, TensorSignature

log = logging.getLogger(__name__)

Cells = npt.NDArray[Any]  # (N,) numbers of any kind, or objects: text, numbers, truths, None

SUFFIXES = (".csv", ".parquet", ".tsv")
PAGE = "form.html"
MAGIC = b"PAR1"  # the first bytes of a Parquet file
SEPARATORS = ",;\t|"
MAX_HEADER = 2**20  # bytes in which the names of a CSV stand
MOST = float(np.finfo(np.float32).max)
# The names that pandas gives to an index which was saved with its table.
INDEX = re.compile(r"Unnamed: 0(\.[0-9]+)*|__index_level_[0-9]+__")


@dataclass(frozen=True)
class Table:
    """Cells by the names of their columns; `places` tells where each row stands in its file, as `line 3`.

    A column without a name is called by its position, as `column_3`. `indexes` are columns that hold the names or
    numbers of the rows; `decimal` is the decimal sign of numbers that can be read in two ways, if it is known.
    """

    cells: Mapping[str, Cells]
    places: Sequence[str]
    separator: str = ""
    indexes: Sequence[str] = ()
    nameless: Sequence[str] = ()
    decimal: str = ""
    _words: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def column(self, name: str) -> Cells:
        if name not in self.cells:
            raise ValueError(f"it has no column '{name}', but {', '.join(self.cells)}")
        return self.cells[name]

    def without(self, rows: Sequence[int]) -> "Table":
        remaining = sorted(set(range(len(self.places))) - set(rows))
        cells = {name: cells[remaining] for name, cells in self.cells.items()}
        return replace(self, cells=cells, places=[self.places[row] for row in remaining], _words={})

    def words(self, name: str) -> list[str]:
        """Returns a column's cells as text, each value in one form; "" for a gap."""
        if name not in self._words:
            self._words[name] = [as_word(cell) for cell in self.column(name)]
        return self._words[name]

    def decimal_of(self, name: str, preferred: str = "") -> str:
        """Returns the decimal sign of a column that holds text; raises `ValueError` if it can be read in two ways."""
        if self.column(name).dtype.kind != "O":
            return ""
        try:
            return decimal_of(self._text(name), self.separator, self.decimal or preferred)
        except ValueError:
            try:
                return decimal_of(self._text(name), self.separator, others=self._decimals)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    def exact(self, name: str, decimal: str = "", *, boolean: bool = False) -> list[Number | None]:
        """Returns a column's numbers; NaN for a gap, None for a cell that is no number, `decimal` where two fit.

        In a `boolean` column `true` and `false` are 1 and 0, in other columns they are no number.
        """
        cells = self.column(name)
        if cells.dtype.kind in "iuf":
            return list(cells.tolist())
        sign = self.decimal_of(name, decimal) or "."
        known: dict[str, Number | None] = dict.fromkeys(GAPS, math.nan)
        if boolean:
            known |= {word: int(value) for word, value in TRUTHS.items()}
        numbers: list[Number | None] = []
        for cell in cells:
            if isinstance(cell, int | float) and not isinstance(cell, bool):
                numbers.append(cell)
                continue
            word = as_word(cell)
            if word not in known:
                lower = word.lower()
                known[word] = known[lower] if lower in known else read_number(word, sign)
            numbers.append(known[word])
        return numbers

    def numbers(
        self, name: str, decimal: str = "", *, offset: Number = 0, boolean: bool = False
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Returns a column's values `(N,)` less `offset`, NaN for gaps, and a mask of cells that are no such number.

        Whole numbers are subtracted exactly. A number that float32 does not hold is none.
        """
        cells = self.column(name)
        if cells.dtype.kind == "f":
            values = cells.astype(np.float64) - offset
        else:
            exact = self.exact(name, decimal, boolean=boolean)
            values = np.array([_less(number, offset) for number in exact], dtype=np.float64)
        bad = np.isinf(values) | (np.abs(values) > MOST)
        return np.where(bad, np.nan, values), bad

    def _text(self, name: str) -> list[str]:
        return [word for word, cell in zip(self.words(name), self.column(name), strict=True) if isinstance(cell, str)]

    @cached_property
    def _decimals(self) -> set[str]:
        """The decimal signs of the columns that allow one reading only."""
        found = set()
        for name, cells in self.cells.items():
            if cells.dtype.kind == "O":
                text = [word for word in self._text(name) if word.lower() not in GAPS]
                try:
                    sign = decimal_of(text, self.separator)
                except ValueError:
                    continue
                if sign and all(read_number(word, sign) is not None for word in text):
                    found.add(sign)
        return found


def _less(number: Number | None, offset: Number) -> float:
    try:
        return math.inf if number is None else float(number - offset)
    except OverflowError:
        return math.inf


def read_table(file: Path) -> Table:
    """Raises `OSError` or `ValueError` for a file that is no table, damaged, or has rows of different lengths."""
    if file.suffix.lower() == ".parquet" or is_readable(file):
        return _parquet(file)
    return parse_csv(file.read_bytes())


def names_of(file: Path) -> list[str]:
    """Returns the names of the columns, from the beginning of the file alone; raises as `read_table` does."""
    if file.suffix.lower() == ".parquet" or is_readable(file):
        from pyarrow import parquet  # here: only Parquet needs it

        return list(parquet.read_schema(file).names)
    with file.open("rb") as opened:
        beginning = opened.read(MAX_HEADER)
    text = codecs.getincrementaldecoder("utf-8-sig")().decode(beginning)  # the last character may be cut off
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
    names = next(reader, [])
    if "\0" in text or (len(beginning) == MAX_HEADER and next(reader, None) is None):
        raise ValueError("its first line does not end")
    return list(_named(names, [np.empty(0)] * len(names), []).cells)


def is_readable(path: Path) -> bool:
    """Whether a file of any other name is a table: Parquet shows it, and a CSV does not."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def parse_csv(contents: bytes) -> Table:
    """Parses UTF-8, with or without a byte-order mark, separated by a comma, `;`, tab or `|`; names come first."""
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no CSV in UTF-8 ({error.reason} at byte {error.start})") from error
    if "\0" in text:
        raise ValueError("it is no CSV: it holds a byte 0")
    separator = _separator(text)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell may be as long as the file
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = next(reader, [])
        first_line = reader.line_num + 1
        rows, places = [], []
        for row in reader:
            if len(row) not in (0, len(names)):
                raise ValueError(f"line {first_line} has {len(row)} cells, but the first line {len(names)}")
            if row:  # no empty line
                rows.append(row)
                places.append(f"line {first_line}")
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is no CSV: {error}") from error
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    cells = [np.array([as_word(cell) for cell in column], dtype=object) for column in columns]
    return _named(names, cells, places, separator)


def _separator(text: str) -> str:
    """Returns the separator that the line of the names holds most often outside of quotes."""
    end, is_quoted = len(text), False
    for place, character in enumerate(text):
        if character == '"':
            is_quoted = not is_quoted
        elif character in "\r\n" and not is_quoted:
            end = place
            break
    unquoted = "".join(text[:end].split('"')[::2])
    counts = Counter(character for character in unquoted if character in SEPARATORS)
    return counts.most_common(1)[0][0] if counts else ","


def _named(
    given: Sequence[str],
    cells: Sequence[Cells],
    places: Sequence[str],
    separator: str = "",
    indexes: Sequence[str] = (),
) -> Table:
    """Makes a table whose columns are named; the first column is an index if it has no name, or that of pandas."""
    names = [" ".join(name.split()) for name in given]
    if not any(names):
        raise ValueError("its first line names no columns")
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            raise ValueError(f"its first line has {count} columns that are named '{name}'")
    found = [name for name in names if INDEX.fullmatch(name)] + list(indexes)
    nameless = []
    for place, name in enumerate(names):
        if not name:
            names[place] = f"column_{place + 1}"
            if names.count(names[place]) > 1:
                raise ValueError(f"its first line names '{names[place]}', and column {place + 1} has no name: name it")
            nameless.append(names[place])
    if nameless[:1] == ["column_1"]:
        found.append(nameless.pop(0))
    return Table(dict(zip(names, cells, strict=True)), places, separator, list(dict.fromkeys(found)), nameless)


def _parquet(file: Path) -> Table:
    import pyarrow as pa  # here: only Parquet needs it, and a server's environment does not have it
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except pa.ArrowException as error:
        raise ValueError(f"it is no Parquet file, or damaged ({str(error).splitlines()[0]})") from error
    cells = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        is_integer, is_floating = pa.types.is_integer(column.type), pa.types.is_floating(column.type)
        if is_floating or (is_integer and not column.null_count):
            cells.append(np.asarray(column.to_numpy()))
            continue
        try:
            values = [_plain(cell) for cell in column.to_pylist()]
        except UnicodeDecodeError as error:
            raise ValueError(f"'{name}' holds bytes that are no text in UTF-8") from error
        array = np.empty(len(values), dtype=object)
        array[:] = values
        cells.append(array)
    places = [f"row {number}" for number in range(1, table.num_rows + 1)]
    about = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    indexes = [name for name in about.get("index_columns", ()) if isinstance(name, str)]
    return _named(table.column_names, cells, places, indexes=indexes)


def _plain(cell: Any) -> Any:
    """Returns numbers, truths and None as they are, and anything else as text."""
    return cell if cell is None or isinstance(cell, bool | int | float) else as_word(cell)


class Encoded(NamedTuple):
    """Rows `(N, C)`, why a row cannot be used, by its number, and the unknown values of each column, in their order."""

    values: npt.NDArray[np.float32]
    reasons: dict[int, str]
    never_seen: dict[str, list[str]]


def encode(table: Table, columns: Sequence[Column], *, is_request: bool = False) -> Encoded:
    """Returns numbers less their offset, NaN for a gap; codes of categories from 1 on, 0 for one that is not known.

    Raises `ValueError` for a missing column, or one of several values of which training saw none. The few rows of a
    request may well hold such a column.
    """
    values = np.zeros((len(table.places), len(columns)), dtype=np.float32)
    reasons: dict[int, str] = {}
    never_seen: dict[str, list[str]] = {}
    for position, column in enumerate(columns):
        if column.categories is not None:
            words, vocabulary = table.words(column.name), Vocabulary(column.categories)
            codes = {word: vocabulary.find(word) for word in set(words) - {""}}
            values[:, position] = [0 if (code := codes.get(word)) is None else code + 1 for word in words]
            if unknown := [word for word in words if word and codes[word] is None]:
                never_seen[column.name] = unknown
                if not is_request and len(unknown) == sum(map(bool, words)) > 1:
                    given, known = f"'{column.name}', such as '{unknown[0]}'", first_of(column.categories)
                    raise ValueError(f"training saw none of the {len(unknown)} values of {given}, but {known}")
            continue
        values[:, position], bad = table.numbers(
            column.name, column.decimal, offset=column.offset, boolean=column.boolean
        )
        words = table.words(column.name) if bad.any() else []
        for row in np.flatnonzero(bad).tolist():
            reasons.setdefault(row, f"{table.places[row]}: {column.name}='{words[row]}' is no number")
    return Encoded(values, reasons, never_seen)


def report_never_seen(encoded: Encoded, place: str) -> None:
    """Logs how many values of each column training did not see; they count as missing."""
    for name, words in encoded.never_seen.items():
        total = len(encoded.values)
        log.warning("never seen  %d of %d values of '%s' in %s, such as '%s'", len(words), total, name, place, words[0])


def read(path: Path, tensor: TensorSignature) -> Iterator[Array | str]:
    """Yields each row as `(C,)`, or the reason why it cannot be used."""
    encoded = encode(read_table(path), tensor.columns)
    if not len(encoded.values):
        raise ValueError("it holds no row")
    report_never_seen(encoded, path.name)
    for row, sample in enumerate(encoded.values):
        yield encoded.reasons.get(row, sample)


def read_body(body: bytes, tensor: TensorSignature) -> ReadSamples:
    """Returns a CSV with a line of names and one row or more as `(N, C)`."""
    return _rows(parse_csv(body), tensor)


def read_object(row: Mapping[str, Any], tensor: TensorSignature) -> ReadSamples:
    """Returns values by the names of the columns, null for a gap, as `(1, C)`."""
    cells = {}
    for column in tensor.columns:
        if column.name not in row:
            raise ValueError(f"'{column.name}' is missing: send null where it is not known")
        value = row[column.name]
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"'{column.name}' is neither a number nor text")
        cells[column.name] = np.array([as_word(value) if isinstance(value, str) else value], dtype=object)
    return _rows(Table(cells, ["the row"]), tensor)


def _rows(table: Table, tensor: TensorSignature) -> ReadSamples:
    encoded = encode(table, tensor.columns, is_request=True)
    if not len(encoded.values):
        raise ValueError("it holds no row")
    if encoded.reasons:
        raise ValueError(encoded.reasons[min(encoded.reasons)])
    places = {column.name: place for place, column in enumerate(tensor.columns) if column.name in encoded.never_seen}
    words = {name: table.words(name) for name in places}
    never_seen = [
        {
            name: words[name][row]
            for name, place in places.items()
            if words[name][row] and not encoded.values[row, place]
        }
        for row in range(len(encoded.values))
    ]
    return ReadSamples(encoded.values, never_seen)
