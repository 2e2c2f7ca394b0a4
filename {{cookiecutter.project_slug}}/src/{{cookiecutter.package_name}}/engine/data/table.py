"""`data=table`: a table of one's own as CSV or Parquet, or one that ships with scikit-learn."""

import hashlib
import logging
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn import datasets
from torch import Tensor

from ..errors import UserError, first_of
from ..inference.cells import TRUTHS, canonical, is_true_or_false
from ..inference.numbers import DECIMALS, Number
from ..inference.signature import Column
from ..inference.tables import MOST, Table, encode, read_table, report_never_seen
from ..spec import DataSpec
from .data_module import InMemoryDataModule
from .given_files import check_columns, checked_column, table_file
from .labels import canonical_labels, count_labels, known_labels, label_numbers
from .samples import SamplesInMemory
from .splits import SPLITS
from .table_splits import drawn_split, given_split

log = logging.getLogger(__name__)

Task = Literal["classification", "multilabel", "regression"]

BUNDLED_TARGET = "target"  # the name of their target column
MANY_CATEGORIES = 20  # up to this number, a column's categories are not compared with its number of rows
COLLAPSED = 0.01  # the share of distinct values that float32 may make equal before they are centred
EXACT = 2**53  # up to this whole number float64 holds each
# A number, a date or a measure: what holds hardly any letters.
DIGITS = re.compile(r"\W*[0-9][0-9\W]*[^\W\d_]{0,4}\W*")


class TableDataModule(InMemoryDataModule):
    """Rows `(N, C)`, float32, with NaN for a gap and codes of categories; and the target of `task`.

    The target is labels `(N,)`, int64, or several labels `(N, K)` of 0 or 1, or numbers `(N,)` in their own units, less
    `spec.target_offset`. `read_as` tells how each column was read.

    Categories and statistics of the columns come from the training split alone, or from `trained`, the DataSpec of a
    checkpoint. If `trained` is given, all rows of another file than that of the training belong to the test split.
    """

    def __init__(
        self,
        path: str,
        target: str | None = None,
        task: Task = "classification",
        drop: list[str] | None = None,
        categorical: list[str] | None = None,
        split: str | None = None,
        decimal: str | None = None,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        trained: DataSpec | None = None,
    ) -> None:
        fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        super().__init__(batch_size, seed, num_workers, pin_memory, **fractions)
        if decimal not in (None, *DECIMALS):
            raise UserError(f"data.decimal={decimal} is no decimal sign: give . or , or null.")
        self.read_as: dict[str, str] = {}
        table, target, fingerprint = _read(path, target)
        table = replace(table, decimal=decimal or "")
        with _named(path):
            table = _without_gaps(table, target, task)
            words: list[str] = []  # the labels of all rows
            if task != "regression":
                words = table.words(target) if trained is not None else _checked_labels(table, target, task)
            if split is not None:
                needed = SPLITS if trained is None else ("test",)
                rows = given_split(table, checked_column(table.cells, split, "split", path), needed)
            elif trained is not None and trained.fingerprint != fingerprint:
                rows = {name: np.arange(len(table.places) if name == "test" else 0) for name in SPLITS}
            else:
                rows = drawn_split(table, words, task, val_fraction, test_fraction, split_seed)
            if trained is None:
                excluded = [target, *([] if split is None else [split]), *(drop or [])]
                columns, self.read_as = _choose_columns(table, excluded, categorical or [], rows["train"])
            else:
                columns = [Column.from_dict(column) for column in trained.columns]
            inputs = _encoded(table, columns, path)
            if trained is None:
                training = rows["train"]
                trained = _describe(table, target, task, columns, training, inputs[training], words)
            fingerprint = "" if split is not None else fingerprint  # such a split is independent of the other rows
            self.spec = replace(trained, name=Path(path).stem, fingerprint=fingerprint)
            truth = _truth(table, target, self.spec, words)
        self.samples = {
            name: SamplesInMemory(torch.from_numpy(inputs[part]), truth[torch.from_numpy(part)])
            for name, part in rows.items()
        }


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Raises what a file is refused for as a sentence with its name."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"data.path={path} cannot be used: {error}.") from error


def _read(path: str, target: str | None) -> tuple[Table, str, str]:
    """The table, the name of its target column and the sha256 of the file ("" if it is bundled)."""
    file = table_file(path)
    if file is None:
        bundled = getattr(datasets, f"load_{path}")(as_frame=False)
        truth = np.array(bundled.target, dtype=float)
        if "target_names" in bundled:
            truth = np.array([str(bundled.target_names[number]) for number in bundled.target], dtype=object)
        cells = dict(zip([*map(str, bundled.feature_names), BUNDLED_TARGET], [*bundled.data.T, truth], strict=True))
        table = Table(cells, [f"row {number}" for number in range(1, len(truth) + 1)])
        return table, checked_column(table.cells, target or BUNDLED_TARGET, "target", path), ""
    try:
        table = read_table(file)
    except (OSError, ValueError) as error:
        raise UserError(f"data.path={path} cannot be used: {error}.") from error
    with file.open("rb") as contents:
        digest = hashlib.file_digest(contents, "sha256").hexdigest()
    return table, checked_column(table.cells, target, "target", path), digest


def _without_gaps(table: Table, target: str, task: str) -> Table:
    """Leaves out rows without a target; with several labels, a row may have none of them."""
    if task == "multilabel":
        return table
    words = table.words(target)
    missing = [row for row, word in enumerate(words) if not word]
    if task == "regression":
        values, bad = table.numbers(target, boolean=is_true_or_false(words))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"{table.places[row]} of the table: {target}='{words[row]}' is no number: mend it, or empty it."
            )
        missing = np.flatnonzero(np.isnan(values)).tolist()
    if missing:
        named = first_of([table.places[row] for row in missing])
        log.warning("left out    %d of %d rows without '%s': %s", len(missing), len(words), target, named)
        table = table.without(missing)
    return table


def _checked_labels(table: Table, target: str, task: str) -> list[str]:
    """The target as words; refuses one label for all rows, or a different one in almost each."""
    words = canonical_labels(table.words(target), task == "multilabel")
    labels = known_labels(words, task == "multilabel")
    if len(labels) < 2:
        found = f"one label, '{labels[0]}'" if labels else "no row"
        raise UserError(f"data.target={target} holds {found}: there must be two or more labels to tell apart.")
    if len(labels) > len(words) / 2:
        raise UserError(
            f"data.target={target} has {len(labels)} labels in {len(words)} rows: name a column of labels, "
            "or say task=regression to predict a number."
        )
    return words


def _choose_columns(
    table: Table, excluded: Sequence[str], categorical: Sequence[str], training: npt.NDArray[np.int64]
) -> tuple[list[Column], dict[str, str]]:
    """All columns but the `excluded` ones and indexes, and how each was read.

    Categories, gaps and offsets are those of the rows `training` alone. A column is numeric if every cell that is not
    empty holds a number, or true or false, unless `categorical` names it.
    """
    for option, names in (("drop", excluded), ("categorical", categorical)):
        check_columns(table.cells, names, option)
    columns: list[Column] = []
    read_as = dict.fromkeys(table.cells, "left out")
    for name in table.cells:
        if name in excluded:
            continue
        if name in table.indexes and name not in categorical:
            log.warning("left out    column '%s': it is the index of the table, and no feature", name)
            read_as[name] = "left out: the index of the table"
            continue
        is_numeric = name not in categorical and _holds_numbers(table, name)
        column = (_numeric_column if is_numeric else _category_column)(table, name, training)
        if column is None:
            log.warning("left out    column '%s': it is empty in the training split", name)
            read_as[name] = "left out: empty"
            continue
        if name in table.nameless:
            raise UserError(
                f"column {name.removeprefix('column_')} of the table has no name: name it, or leave it out as "
                f"data.drop=[{','.join(table.nameless)}]."
            )
        columns.append(column)
        read_as[name] = _described(column)
    _check_categories(table, columns, categorical, training)
    if not columns:
        raise UserError("no column is left to learn from: name fewer in data.drop.")
    return columns, read_as


def _described(column: Column) -> str:
    if column.categories is not None:
        return f"{len(column.categories)} categories"
    parts = ["true or false" if column.boolean else "numbers"]
    parts += [f"decimal sign {column.decimal}"] if column.decimal else []
    parts += [f"less {column.offset:,}"] if column.offset else []
    return ", ".join(parts)


def _numeric_column(table: Table, name: str, training: npt.NDArray[np.int64]) -> Column | None:
    """Describes a column of numbers; None if it has none in the rows `training`."""
    cells = table.column(name)
    if cells.dtype.kind in "iuf":
        is_boolean, decimal = bool(np.isin(cells, (0, 1)).all()), ""
    else:
        is_boolean = set(canonical(table.words(name)).values()) <= {"0", "1", *TRUTHS}
        decimal = "" if is_boolean else table.decimal_of(name)
    numbers = table.exact(name, decimal, boolean=is_boolean)
    known = [number for row in training if (number := numbers[row]) is not None and number == number]
    if not known:
        return None
    if all(isinstance(number, int) for number in numbers) and len(set(numbers)) == len(numbers):
        log.warning(
            "look at     column '%s': its whole numbers differ in every row; data.drop=[%s] leaves them out if they "
            "number the rows", name, name,
        )  # fmt: skip
    return Column(name, None, len(known) < len(training), _offset(f"column '{name}'", known), decimal, is_boolean)


def _offset(name: str, numbers: Sequence[Number]) -> Number:
    """Returns 0, or the number near to the middle without which float32 tells more of the numbers apart.

    Says so if some that differ become equal.
    """
    is_exact = all(isinstance(number, float) or abs(number) <= EXACT for number in numbers)
    distinct = np.unique(np.array(numbers, dtype=np.float64 if is_exact else object))

    def num_distinct(offset: Number) -> int:
        return len(np.unique((distinct - offset).astype(np.float32)))

    offset: Number = 0
    num_left = num_distinct(offset)
    if num_left < (1 - COLLAPSED) * len(distinct):
        middle = statistics.median_low(numbers)
        if num_distinct(middle) > num_left:
            offset, num_left = middle, num_distinct(middle)
    if num_left < len(distinct):
        log.warning("look at     %s: of %d different numbers float32 tells %d apart", name, len(distinct), num_left)
    return offset


def _category_column(table: Table, name: str, training: npt.NDArray[np.int64]) -> Column | None:
    """Describes a column of categories; None if all cells of the rows `training` are empty."""
    words = table.words(name)
    known = [words[row] for row in training if words[row]]
    if not known:
        return None
    forms = canonical(known)
    if merged := sorted(spelling for spelling, form in forms.items() if spelling != form and form in forms):
        log.warning("look at     column '%s': '%s' and '%s' are one category", name, merged[0], forms[merged[0]])
    return Column(name, tuple(known_labels(forms.values(), several=False)), len(known) < len(training))


def _check_categories(
    table: Table, columns: Sequence[Column], categorical: Sequence[str], training: npt.NDArray[np.int64]
) -> None:
    """Refuses text that differs in most of the rows, from which nothing can be learned."""
    too_many = []
    for column in columns:
        if column.categories is None or column.name in categorical:
            continue
        words = [word for row in training if (word := table.words(column.name)[row])]
        if len(column.categories) > max(MANY_CATEGORIES, len(words) / 2):
            unread = [word for word in words if DIGITS.fullmatch(word)]
            if len(unread) > len(words) / 2:
                raise UserError(
                    f"'{unread[0]}' in the column '{column.name}' is no number that can be read: write it with digits "
                    f"and a decimal point alone, or say data.categorical=[{column.name}] if it is a name."
                )
            too_many.append(column.name)
    if too_many:
        raise UserError(
            f"hardly any two rows have the same text in {', '.join(too_many)}, so there is nothing to learn from it: "
            f"leave it out as data.drop=[{','.join(too_many)}], or say data.categorical=[{','.join(too_many)}]."
        )


def _holds_numbers(table: Table, name: str) -> bool:
    """Refuses a column in which most cells are numbers, but not all: that is more often a mistake than a choice."""
    if table.column(name).dtype.kind == "O" and is_true_or_false(table.words(name)):
        return True
    values, bad = table.numbers(name)
    num_known, num_bad = int(np.count_nonzero(~np.isnan(values))), int(np.count_nonzero(bad))
    if num_bad and num_known > num_bad:
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{table.places[row]} of the table: {name}='{table.words(name)[row]}' is no number, unlike {num_known} "
            f"others: mend it, empty it, or say data.categorical=[{name}]."
        )
    return num_bad == 0


def _column_statistics(
    values: npt.NDArray[np.float32], columns: Sequence[Column]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column of `(N, C)`, without its gaps; 0 and 1 for codes of categories."""
    means, deviations = [], []
    for position, column in enumerate(columns):
        known = values[:, position].astype(np.float64)
        known = known[~np.isnan(known)]
        is_code = column.categories is not None
        means.append(0.0 if is_code else float(known.mean()))
        deviations.append(1.0 if is_code or known.std() == 0 else float(known.std()))
    return tuple(means), tuple(deviations)


def _describe(
    table: Table,
    target: str,
    task: Task,
    columns: list[Column],
    training: npt.NDArray[np.int64],
    inputs: npt.NDArray[np.float32],
    words: Sequence[str],
) -> DataSpec:
    """Builds the DataSpec from the rows `training`, whose values are `inputs`; `words` are the labels of all rows."""
    mean, std = _column_statistics(inputs, columns)
    spec = DataSpec(
        name="",
        task=task,
        input_shape=(len(columns),),
        input_dtype="float32",
        input_range=(-MOST, MOST),
        labels=(),
        mean=mean,
        std=std,
        columns=tuple(column.to_dict() for column in columns),
        target=target,
    )
    described = f"{len(table.places):,} rows of {len(columns)} columns, and in '{target}' "
    if task == "regression":
        exact = table.exact(target, boolean=is_true_or_false(table.words(target)))
        offset = _offset(f"data.target={target}", [number for row in training if (number := exact[row]) is not None])
        spec = replace(spec, target_offset=offset)
        numbers = _truth(table, target, spec, ())[torch.from_numpy(training)].double()
        spread = float(numbers.std(correction=0))
        if not spread:
            raise UserError(f"data.target={target} is the same in all training rows: there is nothing to predict.")
        return replace(spec, target_mean=float(numbers.mean()), target_std=spread, description=f"{described}a number.")
    several = task == "multilabel"
    words = [words[row] for row in training]
    labels = tuple(known_labels(words, several))
    counts = count_labels(label_numbers(words, labels, several)[0], len(labels))
    kind = "any" if several else "one"
    return replace(spec, labels=labels, label_counts=counts, description=f"{described}{kind} of {len(labels)} labels.")


def _encoded(table: Table, columns: list[Column], path: str) -> npt.NDArray[np.float32]:
    encoded = encode(table, columns)
    if encoded.reasons:
        reason = next(iter(encoded.reasons.values()))
        raise UserError(f"data.path={path} cannot be used, {reason}: mend it, or empty it.")
    report_never_seen(encoded, Path(path).name)
    return encoded.values


def _truth(table: Table, target: str, spec: DataSpec, words: Sequence[str]) -> Tensor:
    if spec.task == "regression":
        is_boolean = is_true_or_false(table.words(target))
        numbers, _ = table.numbers(target, offset=spec.target_offset, boolean=is_boolean)
        return torch.from_numpy(numbers.astype(np.float32))
    truth, unknown = label_numbers(words, spec.labels, spec.task == "multilabel")
    if unknown is not None:
        place, word = table.places[unknown], words[unknown]
        raise UserError(f"{place} of the table: {target}='{word}' is no label of the training split.")
    return truth
