"""The network as it is deployed, and what every file of it takes and gives, independent of its format."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.spec import DataSpec
from ..models.classifier import Classifier
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


class DeployedNetwork(nn.Module):
    """Raw input `(B, *spec.input_shape)` to logits and probabilities, both `(B, K)` float32."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.net = classifier.net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(x)
        return logits, logits.softmax(dim=1)


def deployed(classifier: Classifier) -> DeployedNetwork:
    """In inference mode on the CPU, in float32, without gradients."""
    network = DeployedNetwork(classifier).to(device="cpu", dtype=torch.float32).eval()
    return network.requires_grad_(False)
