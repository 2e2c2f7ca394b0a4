"""The network as it is deployed: `forward`, or what `deployed()` puts around it, from tensors to tensors by name."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from ..inference.runtime import first_samples
from ..inference.signature import Array, Arrays
from ..spec import Deployed, Input, Output
from .contract import Contract, GateFailure
from .formats import Run
from .timing import median_latency_ms

OUTPUT = "output"  # the name of a single tensor
PLAIN = (bool, int, float, str, type(None))  # values of arguments that become part of the network


@dataclass(frozen=True)
class Call:
    """How `forward` is called: with tensors by the names of its parameters, and with plain values in `constants`.

    `mapping` names the parameter that takes the tensors in one dict, if one does.
    """

    inputs: tuple[str, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    mapping: str | None = None

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Call":
        """Reads what `dataclasses.asdict` wrote, also by way of JSON."""
        return cls(tuple(entry["inputs"]), dict(entry["constants"]), entry["mapping"])

    def arguments(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `forward` by name."""
        if self.mapping is None:
            return {**tensors, **self.constants}
        own = {name: value for name, value in self.constants.items() if name.startswith(f"{self.mapping}.")}
        rest = {name: value for name, value in self.constants.items() if name not in own}
        inner = {name.partition(".")[2]: value for name, value in own.items()}
        return {self.mapping: {**tensors, **inner}, **rest}

    @classmethod
    def read(
        cls, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> "tuple[Call, dict[str, Tensor]]":
        """Reads a call of `forward`; raises `GateFailure` for arguments that cannot be named."""
        forward = type(module).forward
        bound = inspect.signature(forward).bind(module, *args, **kwargs).arguments
        given, place = dict(list(bound.items())[1:]), forward_of(module)
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        mappings = [name for name, value in given.items() if isinstance(value, Mapping)]
        mapping, constants = None, {}
        if not tensors and len(mappings) == 1:
            (mapping,) = mappings
            inner = given.pop(mapping)
            tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
            given |= {f"{mapping}.{name}": value for name, value in inner.items()}
            constants = {name: given[name] for name in given if name.removeprefix(f"{mapping}.") not in tensors}
        else:
            constants = {name: value for name, value in given.items() if name not in tensors}
        for name, value in constants.items():
            if not isinstance(value, PLAIN):
                raise GateFailure(f"{place} takes '{name}' as a {type(value).__name__}: pass tensors, each by itself.")
        if not tensors:
            raise GateFailure(f"{place} takes no tensor: nothing can be exported.")
        return cls(tuple(tensors), constants, mapping), tensors


class DeployedNetwork(nn.Module):
    """Maps tensors, in the order of `call.inputs`, to a tuple of tensors, of float32 or float64 if they are floats."""

    def __init__(self, module: nn.Module, described: Deployed, call: Call) -> None:
        super().__init__()
        self.network = module if described.network is None else described.network
        self.is_forward = described.network is None
        self.call, self.described = call, described

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(tensors).values())

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Computes the outputs by name."""
        if self.is_forward:
            found = self.network(**self.call.arguments(dict(zip(self.call.inputs, tensors, strict=True))))
        else:
            found = self.network(*tensors)
        outputs = flattened(found, place_of(self.network), list(self.described.outputs))
        double = {name for name, about in self.described.outputs.items() if about.double}
        types = {name: torch.float64 if name in double else torch.float32 for name in outputs}
        return {name: _as_type(output, types[name]) for name, output in outputs.items()}


def deployed(module: pl.LightningModule, call: Call) -> DeployedNetwork:
    """Returns the network in inference mode on the CPU, without gradients; its own float64 tensors stay float64."""
    network = DeployedNetwork(module, description_of(module), call).to(device="cpu").eval()
    return network.requires_grad_(False)


def description_of(module: pl.LightningModule) -> Deployed:
    """Returns what the module's `deployed()` says, if it has one."""
    if getattr(module, "deployed", None) is None:
        return Deployed()
    described, place = cast(Any, module).deployed(), f"deployed() of {type(module).__name__}"
    if not isinstance(described, Deployed):
        raise GateFailure(f"{place} returns a {type(described).__name__}: a Deployed is needed.")
    for kind, expected in (("inputs", Input), ("outputs", Output)):
        for name, value in getattr(described, kind).items():
            if not isinstance(value, expected):
                raise GateFailure(f"{place} describes '{name}' of {kind} by a {type(value).__name__}: "
                                  f"{expected.__name__}(...) is needed.")  # fmt: skip
    return described


def flattened(found: Any, place: str, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """Returns the tensors that `forward` returned, by name; `names` are those of a single tensor or of a tuple."""
    if isinstance(found, Tensor):
        outputs: dict[str, Any] = {names[0] if len(names) == 1 else OUTPUT: found}
    elif isinstance(found, Mapping):
        outputs = {str(name): value for name, value in found.items() if value is not None}
    elif isinstance(found, tuple | list):
        default = getattr(found, "_fields", None) or [f"{OUTPUT}{place}" for place in range(len(found))]
        outputs = dict(zip(names if len(names) == len(found) else default, found, strict=True))
    else:
        raise GateFailure(f"{place} returns a {type(found).__name__}: a tensor, a tuple or a dict of them is needed.")
    for name, value in outputs.items():
        if not isinstance(value, Tensor):
            raise GateFailure(f"{place} returns a {type(value).__name__} as '{name}': a tensor is needed.")
    if not outputs:
        raise GateFailure(f"{place} returns nothing: a tensor is needed.")
    return outputs


def restored(like: Any, outputs: Mapping[str, Tensor]) -> Any:
    """Returns the outputs in the structure that `like`, a return value of `forward`, has."""
    values = list(outputs.values())
    if isinstance(like, Tensor):
        return values[0]
    if isinstance(like, Mapping):
        given = iter(values)
        filled = {name: None if value is None else next(given) for name, value in like.items()}
        return filled if type(like) is dict else type(like)(**filled)
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)


@dataclass(frozen=True)
class Source:
    """What an exporter gets."""

    module: pl.LightningModule
    network: DeployedNetwork
    example: Arrays  # by name, of 2 samples or more: a batch of 1 would fix the axis
    contract: Contract
    options: Mapping[str, Any]  # of this format, by name
    model_section: Mapping[str, Any]  # the configuration from which the network can be built again
    spec: Any
    calibration: Callable[[int], Iterator[dict[str, Array]]]  # yields batches of so many training samples

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The example in the order of the network's inputs."""
        return tuple(torch.from_numpy(np.ascontiguousarray(self.example[name])) for name in self.network.call.inputs)

    def dynamic_shapes(self, dim: Any = None) -> tuple[tuple[dict[int, Any], ...]]:
        """The free axes of each input, as torch's exporters take them: each as `dim`, or else by its name."""
        dims: dict[str, Any] = {}
        tensors = {tensor.name: tensor for tensor in self.contract.signature.inputs}
        of_inputs = []
        for name in self.network.call.inputs:
            free = {axis: side for axis, side in enumerate(tensors[name].shape) if isinstance(side, str)}
            of_inputs.append(
                {axis: dim or dims.setdefault(side, torch.export.Dim(side)) for axis, side in free.items()}
            )
        return (tuple(of_inputs),)


def eager(network: DeployedNetwork, *, double: bool = False, device: str = "cpu") -> Run:
    """Returns the network as a function of arrays by name, like a loaded file; with `double` in 64 bits."""

    def run(inputs: Arrays) -> dict[str, Array]:
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(device) for name in network.call.inputs]
        if double:
            tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
        with torch.inference_mode():
            outputs = network.named(tensors)
        for name, output in outputs.items():
            if not output.ndim or len(output) != len(tensors[0]):
                raise GateFailure(
                    f"{place_of(network.network)} answers {len(tensors[0])} samples with {tuple(output.shape)} as "
                    f"'{name}': one answer for each sample, along the first axis, is needed."
                )
        return {name: output.cpu().numpy() for name, output in outputs.items()}

    return run


class Precise(NamedTuple):
    """`run` computes in float64, or in float32 where the network's own code takes nothing else."""

    run: Run
    is_double: bool


def precise(network: DeployedNetwork, inputs: Arrays) -> Precise:
    try:
        run = eager(copy.deepcopy(network).double(), double=True)
        run(first_samples(inputs, 2))
    except (RuntimeError, ValueError):
        return Precise(eager(network), False)
    return Precise(run, True)


def forward_of(module: nn.Module) -> str:
    """Where the owner finds a module's `forward`."""
    code = type(module).forward.__code__
    return f"forward of {type(module).__name__} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def place_of(network: nn.Module) -> str:
    """Where the owner finds what the network computes last: its `net`, or the end of a sequence of layers."""
    network = getattr(network, "net", network)
    while isinstance(network, nn.Sequential) and len(network):
        network = network[-1]
    return forward_of(network)


def eager_latency_ms(network: DeployedNetwork, inputs: Arrays) -> float:
    """Times one sample with one thread, as the files are timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median_latency_ms(eager(network), inputs)
    finally:
        torch.set_num_threads(threads)


def _as_type(output: Tensor, dtype: torch.dtype) -> Tensor:
    return output.to(dtype) if output.is_floating_point() and output.dtype != dtype else output
