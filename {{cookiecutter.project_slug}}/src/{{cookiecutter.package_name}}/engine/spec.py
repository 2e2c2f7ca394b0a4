"""What a network, an exporter and a client must know about the data."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DataSpec:
    """Comes from the DataModule, sizes the network, travels in the checkpoint and becomes the manifest.

    Shapes are of one sample, without the batch axis: `(C, H, W)` for pictures, `(C,)` for the rows of a table. `mean`
    and `std` hold one figure a channel, in the units of the raw input, computed on the training split alone.
    """

    name: str
    task: str
    input_shape: tuple[int, ...]
    input_dtype: str
    input_range: tuple[float, float]
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str = ""  # a sentence for the model card
    label_counts: tuple[int, ...] = ()  # training samples of each label; empty if unknown
    fingerprint: str = ""  # of the files that the splits were made of; empty if they were not made of files
    columns: tuple[dict[str, Any], ...] = ()  # the columns of a table, each from `Column.to_dict`
    # For a regression: the name of the target, and its mean and deviation in the training split.
    target: str = ""
    target_mean: float = 0.0
    target_std: float = 1.0

    def __post_init__(self) -> None:
        if any(type(label) is not str for label in self.labels):
            raise TypeError("DataSpec.labels must be of Python's own str: no checkpoint with numpy's would load again")

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a network for a sample: one for each label, or 1 for a regression."""
        return len(self.labels) or 1

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers only: a checkpoint that holds them loads with `weights_only=True`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataSpec":
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)
