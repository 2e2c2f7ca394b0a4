"""`data=table`: a table of one's own as CSV or Parquet, or one that ships with scikit-learn."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn import datasets
from torch import Tensor

from ..errors import UserError, nearest
from ..inference.signature import Column
from ..inference.tables import MOST, Table, encode, read_table
from ..spec import DataSpec
from .data_module import InMemoryDataModule
from .labels import count_labels, known_labels, label_numbers, rarest_labels
from .samples import SamplesInMemory
from .splits import MIN_SAMPLES, SPLIT_NAMES, SPLITS, Rows, shuffled, stratified

log = logging.getLogger(__name__)

Task = Literal["classification", "multilabel", "regression"]

# Tables that ship with scikit-learn, by the name that is given instead of a path; the last one is for regression.
BUNDLED = {
    "breast_cancer": datasets.load_breast_cancer,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
}
BUNDLED_TARGET = "target"  # the name of their target column
NUM_NAMED = 5  # of the rows that are left out
MANY_CATEGORIES = 20  # up to this number, a column's categories are not compared with its number of rows


class TableDataModule(InMemoryDataModule):
    """Rows `(N, C)`, float32, with NaN for a gap and codes of categories; and the target of `task`.

    The target is labels `(N,)`, int64, or several labels `(N, K)` of 0 or 1, or numbers `(N,)` in their own units.

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
        batch_size: int = 64,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        trained: DataSpec | None = None,
    ) -> None:
        given = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        super().__init__(batch_size, seed, num_workers, pin_memory, **given)
        table, target, fingerprint = _read(path, target)
        table = _without_gaps(table, target, task)
        fractions = val_fraction, test_fraction, split_seed
        if split is not None:  # independent of the rest of the file, so no fingerprint is needed
            needed = SPLITS if trained is None else ("test",)
            rows, fingerprint = _given_split(table, _checked_column(table, split, "split", path), needed), ""
        elif trained is not None and trained.fingerprint != fingerprint:
            rows = {name: np.arange(len(table.places) if name == "test" else 0) for name in SPLITS}
        elif task == "regression":
            rows = shuffled(len(table.places), *fractions)
        else:
            words = _checked_labels(table, target, task)
            rows = stratified(rarest_labels(words, MIN_SAMPLES) if task == "multilabel" else words, *fractions)
        if trained is None:
            excluded = [target, *([] if split is None else [split]), *(drop or [])]
            columns = _choose_columns(table, excluded, categorical or [], rows["train"])
        else:
            columns = [Column.from_dict(column) for column in trained.columns]
        inputs = _encoded(table, columns, path)
        if trained is None:
            trained = _describe(table, target, task, columns, rows["train"], inputs[rows["train"]])
        self.spec = replace(trained, name=Path(path).stem, fingerprint=fingerprint)
        truth = _truth(table, target, self.spec)
        self.samples = {
            name: SamplesInMemory(torch.from_numpy(inputs[part]), truth[torch.from_numpy(part)])
            for name, part in rows.items()
        }


def _read(path: str, target: str | None) -> tuple[Table, str, str]:
    """The table, the name of its target column and the sha256 of the file ("" if it is bundled)."""
    file = Path(path).expanduser()
    if not file.exists() and path in BUNDLED:
        bundled = BUNDLED[path](as_frame=False)
        truth = np.array(bundled.target, dtype=float)
        if "target_names" in bundled:
            truth = np.array([str(bundled.target_names[number]) for number in bundled.target], dtype=object)
        cells = dict(zip([*map(str, bundled.feature_names), BUNDLED_TARGET], [*bundled.data.T, truth], strict=True))
        table = Table(cells, [f"row {number}" for number in range(1, len(truth) + 1)])
        return table, _checked_column(table, target or BUNDLED_TARGET, "target", path), ""
    if not file.is_file():
        *first, last = BUNDLED
        raise UserError(
            f"data.path={path} does not exist: give a CSV or Parquet file, or {', '.join(first)} or {last}."
        )
    try:
        table = read_table(file)
    except (OSError, ValueError) as error:
        raise UserError(f"data.path={path} cannot be used: {error}.") from error
    with file.open("rb") as contents:
        digest = hashlib.file_digest(contents, "sha256").hexdigest()
    return table, _checked_column(table, target, "target", path), digest


def _checked_column(table: Table, name: str | None, option: str, path: str) -> str:
    if name is None:
        raise UserError(f"data.{option}= is needed: {path} has the columns {', '.join(table.cells)}.")
    if name not in table.cells:
        raise UserError(f"data.{option}={name} is no column of {path}; {nearest(name, table.cells)}")
    return name


def _without_gaps(table: Table, target: str, task: str) -> Table:
    """Leaves out rows without a target; with several labels, a row may have none of them."""
    if task == "multilabel":
        return table
    words = table.words(target)
    missing = [row for row, word in enumerate(words) if not word]
    if task == "regression":
        values, bad = table.numbers(target)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"{table.places[row]} of the table: {target}='{words[row]}' is no number: mend it, or empty it."
            )
        missing = np.flatnonzero(np.isnan(values)).tolist()
    if missing:
        named = ", ".join(table.places[row] for row in missing[:NUM_NAMED])
        more = ", ..." if len(missing) > NUM_NAMED else ""
        log.warning("left out    %d of %d rows without '%s': %s%s", len(missing), len(words), target, named, more)
        table = table.without(missing)
    return table


def _checked_labels(table: Table, target: str, task: str) -> list[str]:
    """The target as words; refuses one label for all rows, or a different one in almost each."""
    words = table.words(target)
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


def _given_split(table: Table, split: str, needed: Sequence[str]) -> Rows:
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, word in enumerate(table.words(split)):
        if word.lower() not in SPLIT_NAMES:
            raise UserError(f"{table.places[row]} of the table: {split}='{word}' is none of {', '.join(SPLITS)}.")
        rows[SPLIT_NAMES[word.lower()]].append(row)
    for name in needed:
        if not rows[name]:
            raise UserError(f"data.split={split} names no row for {name}: each of {', '.join(needed)} needs some.")
    return {name: np.array(part, dtype=np.int64) for name, part in rows.items()}


def _choose_columns(
    table: Table, excluded: Sequence[str], categorical: Sequence[str], training: npt.NDArray[np.int64]
) -> list[Column]:
    """All columns but the `excluded` ones; categories and gaps are those of the rows `training` alone.

    A column is numeric if every cell that is not empty holds a number, unless `categorical` names it.
    """
    for option, names in (("drop", excluded), ("categorical", categorical)):
        for name in names:
            if name not in table.cells:
                raise UserError(f"data.{option}=[{name}] is no column of the table; {nearest(name, table.cells)}")
    columns, too_many = [], []
    for name in table.cells:
        if name in excluded:
            continue
        if name not in categorical and _holds_numbers(table, name):
            values = table.numbers(name)[0][training]
            if not np.isnan(values).all():
                columns.append(Column(name, gaps=bool(np.isnan(values).any())))
            else:
                log.warning("left out    column '%s': it is empty in the training split", name)
            continue
        words = table.words(name)
        known = [words[row] for row in training if words[row]]
        categories = known_labels(known, several=False)
        if name not in categorical and len(categories) > max(MANY_CATEGORIES, len(known) / 2):
            too_many.append(name)
        columns.append(Column(name, tuple(categories), gaps=len(known) < len(training)))
    if too_many:
        raise UserError(
            f"hardly any two rows have the same text in {', '.join(too_many)}, so there is nothing to learn from it: "
            f"leave it out as data.drop=[{','.join(too_many)}], or say data.categorical=[{','.join(too_many)}]."
        )
    if not columns:
        raise UserError("no column is left to learn from: name fewer in data.drop.")
    return columns


def _holds_numbers(table: Table, name: str) -> bool:
    """Refuses a column in which most cells are numbers, but not all: that is more often a mistake than a choice."""
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
) -> DataSpec:
    """Builds the DataSpec from the rows `training`, whose values are `inputs`."""
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
        numbers = table.numbers(target)[0][training]
        spread = float(numbers.std())
        if not spread:
            raise UserError(f"data.target={target} is the same in all training rows: there is nothing to predict.")
        return replace(spec, target_mean=float(numbers.mean()), target_std=spread, description=f"{described}a number.")
    several = task == "multilabel"
    words = table.words(target)
    words = [words[row] for row in training]
    labels = tuple(known_labels(words, several))
    counts = count_labels(label_numbers(words, labels, several)[0], len(labels))
    kind = "any" if several else "one"
    return replace(spec, labels=labels, label_counts=counts, description=f"{described}{kind} of {len(labels)} labels.")


def _encoded(table: Table, columns: list[Column], path: str) -> npt.NDArray[np.float32]:
    try:
        values, reasons = encode(table, columns)
    except ValueError as error:
        raise UserError(f"data.path={path} cannot be used: {error}.") from error
    if reasons:
        raise UserError(f"data.path={path} cannot be used, {next(iter(reasons.values()))}: mend it, or empty it.")
    return values


def _truth(table: Table, target: str, spec: DataSpec) -> Tensor:
    if spec.task == "regression":
        return torch.from_numpy(table.numbers(target)[0].astype(np.float32))
    words = table.words(target)
    truth, unknown = label_numbers(words, spec.labels, spec.task == "multilabel")
    if unknown is not None:
        place, word = table.places[unknown], words[unknown]
        raise UserError(f"{place} of the table: {target}='{word}' is no label of the training split.")
    return truth
