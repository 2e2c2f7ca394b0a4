"""The network as it is deployed, and what an exporter gets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..spec import DataSpec
from ..training.layers import OutputLayer
from .formats import Array, Run
from .gate import median_latency_ms
from .signature import Contract, GateFailure


@dataclass(frozen=True)
class Source:
    """What an exporter gets."""

    network: nn.Module
    example: Tensor  # 2 samples or more: a batch of 1 would fix the axis
    contract: Contract
    options: Mapping[str, Any]  # of this format, by name
    model_section: Mapping[str, Any]  # the configuration from which the network can be built again
    spec: DataSpec
    training_inputs: Callable[[int], Array]  # returns that many raw inputs `(N, ...)` of the training split


class DeployedNetwork(nn.Module):
    """Maps raw input `(B, *spec.input_shape)` to the outputs of the task, each `(B, K)` float32."""

    def __init__(self, net: nn.Module, spec: DataSpec) -> None:
        super().__init__()
        self.net = net
        self.answers = OutputLayer(spec)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.net(x)
        if not isinstance(found, Tensor):
            raise GateFailure(f"{_place_of(self.net)} returns a {type(found).__name__}: one tensor (B, K) is needed.")
        outputs: tuple[Tensor, ...] = self.answers(found if found.dtype == torch.float32 else found.float())
        return outputs


def deployed(model: nn.Module, spec: DataSpec) -> DeployedNetwork:
    """Returns the network in inference mode on the CPU, without gradients; its own float64 tensors stay float64."""
    network = DeployedNetwork(getattr(model, "net", model), spec).to(device="cpu").eval()
    return network.requires_grad_(False)


def require_data_spec(spec: Any) -> None:
    if not isinstance(spec, DataSpec):
        raise UserError(
            "the export takes models whose DataModule describes one input and the labels or the target in a DataSpec, "
            "and this one has none: set spec in the DataModule."
        )


def eager(network: nn.Module) -> Run:
    """Returns the network as a function of arrays, like a loaded file."""

    def run(inputs: Array) -> tuple[Array, ...]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(inputs))
        for output in outputs:
            if output.ndim != 2 or len(output) != len(inputs):
                shape = tuple(output.shape)
                place = _place_of(getattr(network, "net", network))
                raise GateFailure(f"{place} answers {len(inputs)} samples with {shape}: (B, K) is needed.")
        return tuple(output.numpy() for output in outputs)

    return run


def _place_of(network: nn.Module) -> str:
    """Where the owner finds what the network computes last."""
    while isinstance(network, nn.Sequential):
        network = network[-1]
    code = type(network).forward.__code__
    return f"forward of {type(network).__name__} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def eager_latency_ms(network: nn.Module, inputs: Array) -> float:
    """Times one sample with one thread, as the files are timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median_latency_ms(eager(network), inputs)
    finally:
        torch.set_num_threads(threads)
