"""The columns of a table: which are read, and what the training split says of each."""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import UserError, nearest
from ..inference.input_schema import Column
from ..inference.tables import Table
from .labels import known_labels

log = logging.getLogger(__name__)

MANY_CATEGORIES = 20  # from which on they are held against the number of rows


def choose(
    table: Table, but: Sequence[str], categorical: Sequence[str], training: npt.NDArray[np.int64]
) -> list[Column]:
    """All columns `but` those named; categories and gaps are those of the rows `training`, and of no other.

    A column is one of numbers where every cell that is not empty holds one, unless `categorical` names it.
    """
    for option, names in (("drop", but), ("categorical", categorical)):
        for name in names:
            if name not in table.cells:
                raise UserError(f"data.{option}=[{name}] is no column of the table; {nearest(name, table.cells)}")
    columns, too_many = [], []
    for name in table.cells:
        if name in but:
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
    """Refuses a column of which most cells are numbers, and some are none: it is a mistake more often than a choice."""
    values, bad = table.numbers(name)
    num_known, num_bad = int(np.count_nonzero(~np.isnan(values))), int(np.count_nonzero(bad))
    if num_bad and num_known > num_bad:
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{table.places[row]} of the table: {name}='{table.words(name)[row]}' is no number, unlike {num_known} "
            f"others: mend it, empty it, or say data.categorical=[{name}]."
        )
    return num_bad == 0


def statistics(
    values: npt.NDArray[np.float32], columns: Sequence[Column]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each column of `(N, C)`, without its gaps; 0 and 1 for codes, which stay as they are."""
    means, deviations = [], []
    for position, column in enumerate(columns):
        known = values[:, position].astype(np.float64)
        known = known[~np.isnan(known)]
        is_code = column.categories is not None
        means.append(0.0 if is_code else float(known.mean()))
        deviations.append(1.0 if is_code or known.std() == 0 else float(known.std()))
    return tuple(means), tuple(deviations)
