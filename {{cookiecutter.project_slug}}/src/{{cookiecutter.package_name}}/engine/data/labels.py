"""Labels as words to numbers: one a sample, or any number of them, written as `red|round`."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..inference.cells import Vocabulary, canonical, value_of

SEPARATOR = "|"  # between several labels of a sample


def parse_labels(word: str, several: bool) -> list[str]:
    return [label.strip() for label in word.split(SEPARATOR) if label.strip()] if several else [word]


def canonical_labels(words: Sequence[str], several: bool) -> list[str]:
    """Writes each label in one form, so that `1` and `1.0` are one label where all are numbers."""
    parts = [parse_labels(word, several) for word in words]
    forms = canonical(label for labels in parts for label in labels)
    return [SEPARATOR.join(forms.get(label, label) for label in labels) for labels in parts]


def known_labels(words: Iterable[str], several: bool) -> list[str]:
    """Each label once, in numerical order if all are numbers, else in alphabetical order."""
    labels = sorted({label for word in words for label in parse_labels(word, several)})
    values = {label: value_of(label) for label in labels}
    return labels if None in values.values() else sorted(labels, key=lambda label: values[label] or 0)


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
    vocabulary = Vocabulary(labels)
    numbers = {label: vocabulary.find(label) for word in set(words) for label in parse_labels(word, several)}
    rows = [[-1 if (n := numbers[label]) is None else n for label in parse_labels(word, several)] for word in words]
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
