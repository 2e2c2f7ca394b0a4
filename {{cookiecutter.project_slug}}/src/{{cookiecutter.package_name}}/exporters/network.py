"""The network as it is deployed, and what an exporter makes its file of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.spec import DataSpec
from ..models.classifier import Classifier
from . import Array, Run
from .contract import Contract, GateFailure
from .fresh import median_latency_ms


@dataclass(frozen=True)
class Source:
    """What an exporter makes its file of."""

    network: nn.Module
    example: Tensor  # 2 samples or more: a batch of 1 would fix the axis
    contract: Contract
    options: Mapping[str, Any]  # of this format, by name
    model_section: Mapping[str, Any]  # of the configuration, from which the network can be built again
    spec: DataSpec
    training_inputs: Callable[[int], Array]  # that many raw inputs `(N, ...)` of the training split


class DeployedNetwork(nn.Module):
    """Raw input `(B, *spec.input_shape)` to logits and probabilities, both `(B, K)` float32."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.net = classifier.net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(x)
        logits = logits if logits.dtype == torch.float32 else logits.float()
        return logits, logits.softmax(dim=-1)


def deployed(classifier: Classifier) -> DeployedNetwork:
    """In inference mode on the CPU, without gradients; a tensor of float64 that the network has of its own stays so."""
    network = DeployedNetwork(classifier).to(device="cpu").eval()
    return network.requires_grad_(False)


def eager(network: nn.Module) -> Run:
    """The network as a format runs it: arrays in, arrays out."""

    def run(inputs: Array) -> tuple[Array, Array]:
        with torch.inference_mode():
            logits, probabilities = network(torch.from_numpy(inputs))
        if logits.ndim != 2 or len(logits) != len(inputs):
            shape = tuple(logits.shape)
            raise GateFailure(f"the network answers {len(inputs)} samples with {shape}: (B, K) is needed.")
        return logits.numpy(), probabilities.numpy()

    return run


def eager_latency_ms(network: nn.Module, inputs: Array) -> float:
    """With one thread, as the files are timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median_latency_ms(eager(network), inputs)
    finally:
        torch.set_num_threads(threads)
