"""The network as it is deployed, and what an exporter makes its file of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..spec import DataSpec
from ..training.base_module import BaseModule
from ..training.layers import OutputLayer
from .formats import Array, Run
from .isolation import median_latency_ms
from .signature import Contract, GateFailure


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
    """Raw input `(B, *spec.input_shape)` to what the task answers, each `(B, K)` float32."""

    def __init__(self, model: BaseModule) -> None:
        super().__init__()
        self.net = model.net
        self.answers = OutputLayer(model.spec)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.net(x)
        outputs: tuple[Tensor, ...] = self.answers(found if found.dtype == torch.float32 else found.float())
        return outputs


def deployed(model: BaseModule) -> DeployedNetwork:
    """In inference mode on the CPU, without gradients; a tensor of float64 that the network has of its own stays so."""
    network = DeployedNetwork(model).to(device="cpu").eval()
    return network.requires_grad_(False)


def eager(network: nn.Module) -> Run:
    """The network as a format runs it: arrays in, arrays out."""

    def run(inputs: Array) -> tuple[Array, ...]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(inputs))
        for output in outputs:
            if output.ndim != 2 or len(output) != len(inputs):
                shape = tuple(output.shape)
                raise GateFailure(f"the network answers {len(inputs)} samples with {shape}: (B, K) is needed.")
        return tuple(output.numpy() for output in outputs)

    return run


def eager_latency_ms(network: nn.Module, inputs: Array) -> float:
    """With one thread, as the files are timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median_latency_ms(eager(network), inputs)
    finally:
        torch.set_num_threads(threads)
