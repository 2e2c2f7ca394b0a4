"""Labels as words to numbers: one a sample, or any number of them, written as `red|round`."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..errors import UserError

BETWEEN = "|"  # several labels


def labels_in(word: str, several: bool) -> list[str]:
    return [label.strip() for label in word.split(BETWEEN) if label.strip()] if several else [word]


def known_labels(words: Iterable[str], several: bool) -> list[str]:
    """Each once; numbers by their size, text by its letters."""
    labels = sorted({label for word in words for label in labels_in(word, several)})
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return labels
    return sorted(labels, key=float) if all(map(math.isfinite, numbers)) else labels


def rarest(words: Sequence[str], least: int) -> list[str]:
    """Of samples with several labels, the one that fewest have; groups that are too small to split fall together."""
    counts = Counter(label for word in words for label in labels_in(word, several=True))
    for label, count in counts.items():
        if count < least:
            raise UserError(
                f"the label '{label}' has {count} samples, too few to split: give {least} or more, or leave it out."
            )
    groups = [
        min(labels_in(word, several=True), key=lambda label: (counts[label], label), default="") for word in words
    ]
    sizes = Counter(groups)
    largest = max(sizes, key=lambda group: sizes[group])
    return [group if sizes[group] >= least else largest for group in groups]


def numbered(words: Sequence[str], labels: Sequence[str], several: bool) -> tuple[Tensor, int | None]:
    """Their numbers `(N,)`, or of several labels `(N, K)`, 0 or 1; and the first row with one that is not known."""
    numbers = {label: number for number, label in enumerate(labels)}
    found = [[numbers.get(label, -1) for label in labels_in(word, several)] for word in words]
    unknown = next((row for row, of_row in enumerate(found) if -1 in of_row), None)
    if not several:
        return torch.tensor([number for (number,) in found]), unknown
    truth = torch.zeros(len(words), len(labels), dtype=torch.long)
    for row, of_row in enumerate(found):
        truth[row, of_row] = 1
    return truth, unknown


def counts_of(truth: Tensor, num_labels: int) -> tuple[int, ...]:
    """How many samples have each label."""
    counts = truth.sum(dim=0) if truth.ndim == 2 else truth.bincount(minlength=num_labels)
    return tuple(counts.tolist())
