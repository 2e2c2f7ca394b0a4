"""How a set is split where no split is given."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from ..errors import UserError

SPLITS = ("train", "val", "test")
# What splits are called where they are given.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LEAST = 5  # of a label, that each split has one


def stratified(
    labels: Sequence[Any] | npt.NDArray[Any], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of each split, which holds every label in the same proportion; refuses a label that is too rare for it."""
    counts = Counter(labels)
    rarest = min(counts, key=lambda label: counts[label])
    if counts[rarest] < LEAST:
        raise UserError(
            f"the label '{rarest}' has {counts[rarest]} samples, too few to split: give {LEAST} or more, "
            "or leave it out."
        )
    try:
        return _split(len(labels), val_fraction, test_fraction, seed, lambda rows: [labels[row] for row in rows])
    except ValueError as error:
        raise UserError(
            f"{len(labels)} samples of {len(counts)} labels are too few for data.val_fraction={val_fraction} and "
            f"data.test_fraction={test_fraction}: give more samples, or larger fractions."
        ) from error


def shuffled(
    num_samples: int, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of each split, at random."""
    if num_samples < LEAST:
        raise UserError(f"{num_samples} samples are too few to split: give {LEAST} or more.")
    return _split(num_samples, val_fraction, test_fraction, seed, lambda rows: None)


def _split(
    num_samples: int,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    labels_of: Callable[[npt.NDArray[np.int64]], Sequence[Any] | None],
) -> dict[str, npt.NDArray[np.int64]]:
    rows = np.arange(num_samples)
    rest, test = train_test_split(rows, test_size=test_fraction, stratify=labels_of(rows), random_state=seed)
    part = val_fraction / (1 - test_fraction)
    train, val = train_test_split(rest, test_size=part, stratify=labels_of(rest), random_state=seed)
    return dict(zip(SPLITS, (train, val, test), strict=True))
