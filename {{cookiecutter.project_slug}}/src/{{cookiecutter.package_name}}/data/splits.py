"""How a set is split where no split is given."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from ..refusal import Refusal

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
        raise Refusal(
            f"the label '{rarest}' has {counts[rarest]} samples, too few to split: give {LEAST} or more, "
            "or leave it out."
        )
    rows = np.arange(len(labels))
    try:
        rest, test = train_test_split(rows, test_size=test_fraction, stratify=labels, random_state=seed)
        of_rest = [labels[row] for row in rest]
        part = val_fraction / (1 - test_fraction)
        train, val = train_test_split(rest, test_size=part, stratify=of_rest, random_state=seed)
    except ValueError as error:
        raise Refusal(
            f"{len(labels)} samples of {len(counts)} labels are too few for data.val_fraction={val_fraction} and "
            f"data.test_fraction={test_fraction}: give more samples, or larger fractions."
        ) from error
    return dict(zip(SPLITS, (train, val, test), strict=True))
