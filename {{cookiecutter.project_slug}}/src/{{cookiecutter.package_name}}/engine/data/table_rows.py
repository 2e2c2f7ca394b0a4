"""A table as its data set finds it: read, without rows that have no target, and split where it says so."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn import datasets

from ..errors import UserError, nearest
from ..inference.tables import Table, read_table
from .labels import known_labels
from .splits import SPLIT_NAMES, SPLITS

log = logging.getLogger(__name__)

# Tables that ship with scikit-learn, by the name that stands in the place of a path; the last one is for regression.
BUNDLED = {
    "breast_cancer": datasets.load_breast_cancer,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
}
TARGET = "target"  # their column with what is to be predicted
NUM_NAMED = 5  # of the rows that are left out

Rows = dict[str, npt.NDArray[np.int64]]


def read(path: str, target: str | None) -> tuple[Table, str, str]:
    """The table, the name of its target column and a digest of the file's contents."""
    file = Path(path).expanduser()
    if not file.exists() and path in BUNDLED:
        bundled = BUNDLED[path](as_frame=False)
        truth = np.array(bundled.target, dtype=float)
        if "target_names" in bundled:
            truth = np.array([str(bundled.target_names[number]) for number in bundled.target], dtype=object)
        cells = dict(zip([*map(str, bundled.feature_names), TARGET], [*bundled.data.T, truth], strict=True))
        table = Table(cells, [f"row {number}" for number in range(1, len(truth) + 1)])
        return table, known_column(table, target or TARGET, "target", path), ""
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
    return table, known_column(table, target, "target", path), digest


def known_column(table: Table, name: str | None, option: str, path: str) -> str:
    if name is None:
        raise UserError(f"data.{option}= is needed: {path} has the columns {', '.join(table.cells)}.")
    if name not in table.cells:
        raise UserError(f"data.{option}={name} is no column of {path}; {nearest(name, table.cells)}")
    return name


def with_targets(table: Table, target: str, task: str) -> Table:
    """Without the rows that have none; a row may well have none of several labels."""
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


def check_labels(table: Table, target: str, task: str) -> list[str]:
    """The target as words; refuses what is no label: one for all rows, or another one for almost each."""
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


def given_split(table: Table, split: str, needed: Sequence[str]) -> Rows:
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, word in enumerate(table.words(split)):
        if word.lower() not in SPLIT_NAMES:
            raise UserError(f"{table.places[row]} of the table: {split}='{word}' is none of {', '.join(SPLITS)}.")
        rows[SPLIT_NAMES[word.lower()]].append(row)
    for name in needed:
        if not rows[name]:
            raise UserError(f"data.split={split} names no row for {name}: each of {', '.join(needed)} needs some.")
    return {name: np.array(of_split, dtype=np.int64) for name, of_split in rows.items()}
