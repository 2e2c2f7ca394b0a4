"""What a data set holds: the samples of each split, how many of each label, and how each column was read."""

from collections.abc import Mapping, Sized
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ..spec import DataSpec
from .labels import count_labels
from .samples import Samples
from .splits import MIN_SAMPLES


@dataclass(frozen=True)
class DataDescription:
    """`splits` holds the number of samples of each split, `labels` the same for each label, where they are known.

    `columns` tells how each column of a table was read.
    """

    splits: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, datamodule: Any, loaders: Mapping[str, Any]) -> "DataDescription":
        """Describes the samples of a DataModule of the engine's kind, or else the data sets behind the loaders."""
        columns = dict(getattr(datamodule, "read_as", {}))
        samples: Any = getattr(datamodule, "samples", None)
        spec = getattr(datamodule, "spec", None)
        parts = samples.values() if isinstance(samples, Mapping) else [None]
        if not isinstance(spec, DataSpec) or not all(isinstance(part, Samples) for part in parts):
            given = {name: getattr(loader, "source", loader) for name, loader in loaders.items()}  # before it was dealt
            sets = {name: getattr(loader, "dataset", None) for name, loader in given.items()}
            return cls({name: len(found) for name, found in sets.items() if isinstance(found, Sized)}, {}, columns)
        splits = {name: len(part) for name, part in samples.items()}
        labels: dict[str, dict[str, int]] = {}
        if all(_are_labels(part.labels, spec) for part in samples.values()):
            for name, part in samples.items():
                for label, count in zip(spec.labels, count_labels(part.labels, len(spec.labels)), strict=True):
                    labels.setdefault(label, {})[name] = count
        return cls(splits, labels, columns)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def rare(self) -> list[str]:
        """Words for each label that a split has fewer samples of than a figure for it needs."""
        return [
            f"'{label}' has {count} in {split}"
            for label, counts in self.labels.items()
            for split, count in counts.items()
            if count < MIN_SAMPLES and self.splits[split]
        ]


def _are_labels(values: Tensor, spec: DataSpec) -> bool:
    """Whether these are numbers of the spec's labels, `(N,)`, or any number of labels, `(N, K)`."""
    if values.is_floating_point() or not spec.labels:
        return False
    if spec.task == "multilabel":
        return values.shape[1:] == (len(spec.labels),)
    return values.ndim == 1 and bool(((values >= 0) & (values < len(spec.labels))).all())
