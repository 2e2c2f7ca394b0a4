"""Labels as words to numbers: one a sample, or any number of them, written as `red|round`."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..errors import UserError

SEPARATOR = "|"  # between several labels of a sample


def parse_labels(word: str, several: bool) -> list[str]:
    return [label.strip() for label in word.split(SEPARATOR) if label.strip()] if several else [word]


def known_labels(words: Iterable[str], several: bool) -> list[str]:
    """Each label once, in numerical order if all are numbers, else in alphabetical order."""
    labels = sorted({label for word in words for label in parse_labels(word, several)})
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return labels
    return sorted(labels, key=float) if all(map(math.isfinite, numbers)) else labels


def rarest_labels(words: Sequence[str], least: int) -> list[str]:
    """For each sample with several labels its rarest one, by which the set can be stratified.

    A group of fewer than `least` samples joins the largest group; a label with fewer samples is refused.
    """
    counts = Counter(label for word in words for label in parse_labels(word, several=True))
    for label, count in counts.items():
        if count < least:
            raise UserError(
                f"the label '{label}' has {count} samples, too few to split: give {least} or more, or leave it out."
            )
    groups = [
        min(parse_labels(word, several=True), key=lambda label: (counts[label], label), default="") for word in words
    ]
    sizes = Counter(groups)
    largest = max(sizes, key=lambda group: sizes[group])
    return [group if sizes[group] >= least else largest for group in groups]


def label_numbers(words: Sequence[str], labels: Sequence[str], several: bool) -> tuple[Tensor, int | None]:
    """The labels as numbers `(N,)`, or several ones as `(N, K)` of 0 or 1; and the first row with an unknown label."""
    numbers = {label: number for number, label in enumerate(labels)}
    rows = [[numbers.get(label, -1) for label in parse_labels(word, several)] for word in words]
    unknown = next((row for row, found in enumerate(rows) if -1 in found), None)
    if not several:
        return torch.tensor([number for (number,) in rows]), unknown
    truth = torch.zeros(len(words), len(labels), dtype=torch.long)
    for row, found in enumerate(rows):
        truth[row, found] = 1
    return truth, unknown


def count_labels(truth: Tensor, num_labels: int) -> tuple[int, ...]:
    """The number of samples of each label, from `(N,)` or `(N, K)` as `label_numbers` returns them."""
    counts = truth.sum(dim=0) if truth.ndim == 2 else truth.bincount(minlength=num_labels)
    return tuple(counts.tolist())
