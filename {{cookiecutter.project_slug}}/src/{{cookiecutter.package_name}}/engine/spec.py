"""What a network, an exporter and a client must know about the data, and about the tensors of a model."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    bit_depth: int = 0  # bits that pictures of more than 8 bits use, if not 16
    # For a regression: the name of the target; what the DataModule subtracts from it, because float32 would make large
    # numbers near to each other equal; and the mean and deviation of the rest in the training split.
    target: str = ""
    target_offset: int | float = 0
    target_mean: float = 0.0
    target_std: float = 1.0

    def __post_init__(self) -> None:
        if any(type(label) is not str for label in self.labels):
            raise TypeError("DataSpec.labels must be of Python's own str: no checkpoint with numpy's would load again")

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a network for a sample: one for each label, or 1 for a regression."""
        return len(self.labels) or 1

    def as_input(self) -> "Input":
        """What is known of the input, for the module's `deployed()`."""
        return Input(
            range=self.input_range, columns=self.columns, bit_depth=self.bit_depth, mean=self.mean, std=self.std
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers only: a checkpoint that holds them loads with `weights_only=True`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataSpec":
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def plain_spec(spec: Any) -> dict[str, Any]:
    """Returns a DataSpec, or other plain data from which a network is sized, as a dict that `read_spec` reads."""
    return spec.to_dict() if isinstance(spec, DataSpec) else {"plain": spec}


def read_spec(entry: Mapping[str, Any]) -> Any:
    return entry["plain"] if "plain" in entry else DataSpec.from_dict(dict(entry))


@dataclass(frozen=True)
class Input:
    """What is known of an input of `forward`: the range of its values, its free axes by name, the columns of a table.

    `bit_depth` is the number of bits that picture files of more than 8 bits use, if it is not 16. `axes` maps the place
    of an axis, counted from 0, to a name; axes of one name have one size. `mean` and `std` of the training split, one
    figure for each place along the second axis, are what a server compares requests with.
    """

    range: tuple[float, float] | None = None
    axes: Mapping[int, str] = field(default_factory=dict)
    columns: tuple[dict[str, Any], ...] = ()
    bit_depth: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Output:
    """What is known of an output. `labels` stand for the places along its second axis, or for its whole numbers.

    With labels, floats are probabilities; with `multiple`, any number of labels applies, those above 0.5. `mean` and
    `std` are those of a target in the training split, `label_counts` the samples of each label. Floats of any kind are
    exported as float32, and with `double` as float64, for numbers of more than 7 digits.
    """

    labels: tuple[str, ...] = ()
    multiple: bool = False
    label_counts: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    double: bool = False


@dataclass(frozen=True)
class Deployed:
    """What a module's optional method `deployed()` returns: what is exported beyond its `forward`.

    `network` takes the arguments of `forward`, in their order, and is exported in its place. `inputs` and `outputs`
    describe tensors by name: inputs are named after the parameters of `forward`, outputs after the keys of a dict, or
    in the order of a tuple. `result` tells what replaces the return value of `forward` in the test loop: the name of an
    output, or a function of the outputs by name; without it a `network` is judged by its outputs alone. `metric` names
    the test metric by which reduced formats are judged, in place of the monitored one. `example` holds arguments by
    name, of two samples or more, for a module whose loops never call `forward`.
    """

    network: "nn.Module | None" = None
    inputs: Mapping[str, Input] = field(default_factory=dict)
    outputs: Mapping[str, Output] = field(default_factory=dict)
    result: "str | Callable[[dict[str, Tensor]], Any] | None" = None
    metric: str | None = None
    example: "Mapping[str, Tensor] | None" = None
