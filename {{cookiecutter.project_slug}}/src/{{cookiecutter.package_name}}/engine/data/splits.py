"""Splitting a data set that comes without a split."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from ..errors import UserError

SPLITS = ("train", "val", "test")
# The names of splits in folders and columns.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MIN_SAMPLES = 5  # of a label, so that each split has one

Rows = dict[str, npt.NDArray[np.int64]]


def stratified(labels: Sequence[Any] | npt.NDArray[Any], val_fraction: float, test_fraction: float, seed: int) -> Rows:
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


def shuffled(num_samples: int, val_fraction: float, test_fraction: float, seed: int) -> Rows:
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
