"""Which rows of a table are for training, validation and test: as a column says, or drawn."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from ..errors import UserError
from ..inference.tables import Table
from .labels import canonical_labels, rarest_labels
from .splits import MIN_SAMPLES, SPLIT_NAMES, SPLITS

Rows = dict[str, npt.NDArray[np.int64]]


def given_split(table: Table, split: str, needed: Sequence[str]) -> Rows:
    """Rows of each split as the column `split` says; refuses other words, and a split of `needed` without a row."""
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, word in enumerate(table.words(split)):
        if word.lower() not in SPLIT_NAMES:
            raise UserError(f"{table.places[row]} of the table: {split}='{word}' is none of {', '.join(SPLITS)}.")
        rows[SPLIT_NAMES[word.lower()]].append(row)
    for name in needed:
        if not rows[name]:
            raise UserError(f"data.split={split} names no row for {name}: each of {', '.join(needed)} needs some.")
    return {name: np.array(part, dtype=np.int64) for name, part in rows.items()}


def drawn_split(table: Table, words: Sequence[str], task: str, *fractions_and_seed: Any) -> Rows:
    """Rows of each split at random, with labels in the same proportion; `words` are those of the target column."""
    if task == "regression":
        return _shuffled(len(table.places), *fractions_and_seed)
    labels = canonical_labels(words, task == "multilabel")
    groups = rarest_labels(labels, MIN_SAMPLES) if task == "multilabel" else labels
    return _stratified(groups, *fractions_and_seed)


def _stratified(labels: Sequence[Any] | npt.NDArray[Any], val_fraction: float, test_fraction: float, seed: int) -> Rows:
    """Rows of each split, each with every label in the same proportion; refuses a label that is too rare for it."""
    counts = Counter(labels)
    rarest = min(counts, key=lambda label: counts[label])
    if counts[rarest] < MIN_SAMPLES:
        raise UserError(
            f"the label '{rarest}' has {counts[rarest]} samples, too few to split: give {MIN_SAMPLES} or more, "
            "or leave it out."
        )
    try:
        return _split(len(labels), val_fraction, test_fraction, seed, np.unique(labels, return_inverse=True)[1])
    except ValueError as error:
        raise UserError(
            f"{len(labels)} samples of {len(counts)} labels are too few for data.val_fraction={val_fraction} and "
            f"data.test_fraction={test_fraction}: give more samples, or larger fractions."
        ) from error


def _shuffled(num_samples: int, val_fraction: float, test_fraction: float, seed: int) -> Rows:
    """Rows of each split, at random."""
    if num_samples < MIN_SAMPLES:
        raise UserError(f"{num_samples} samples are too few to split: give {MIN_SAMPLES} or more.")
    return _split(num_samples, val_fraction, test_fraction, seed, None)


def _split(
    num_samples: int, val_fraction: float, test_fraction: float, seed: int, labels: npt.NDArray[np.int64] | None
) -> Rows:
    rows = np.arange(num_samples)
    rest, test = train_test_split(rows, test_size=test_fraction, stratify=labels, random_state=seed)
    part, labels = val_fraction / (1 - test_fraction), None if labels is None else labels[rest]
    train, val = train_test_split(rest, test_size=part, stratify=labels, random_state=seed)
    return dict(zip(SPLITS, (train, val, test), strict=True))
