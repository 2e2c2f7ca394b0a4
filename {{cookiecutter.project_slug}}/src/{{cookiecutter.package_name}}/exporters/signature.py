"""What an exported file takes and gives, independent of its format."""

from dataclasses import dataclass
from typing import Any

from ..data.spec import DataSpec
from ..refusal import Refusal


class GateFailure(Refusal):
    """A file that is not what was trained; nothing of its bundle is published."""

    exit_code = 1


@dataclass(frozen=True)
class TensorSignature:
    """`shape` without the batch axis, which is free in every tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As in the manifest: -1 stands for the batch axis."""
        return {"name": self.name, "dtype": self.dtype, "shape": [-1, *self.shape]}


@dataclass(frozen=True)
class Signature:
    input: TensorSignature
    outputs: tuple[TensorSignature, ...]

    @classmethod
    def of(cls, spec: DataSpec) -> "Signature":
        return cls(
            input=TensorSignature("input", spec.input_dtype, spec.input_shape),
            outputs=(
                TensorSignature("logits", "float32", (spec.num_classes,)),
                TensorSignature("probabilities", "float32", (spec.num_classes,)),
            ),
        )
