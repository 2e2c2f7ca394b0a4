"""`formats=[torchscript]`: one file for libtorch in C++ and for `torch.jit.load`; code, so load only what you trust."""

import json
from pathlib import Path

import torch
from torch import Tensor, jit, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from ..quiet import Quiet, quietly
from . import Array, Run
from .network import GateFailure, Signature

QUIET = (
    Quiet(
        DeprecationWarning,
        r"`torch\.jit\.\w+` is deprecated",
        r"torch\.jit\._\w+",
        "TorchScript is supported up to Python 3.13, which is the newest that this project allows",
    ),
    Quiet(
        TracerWarning,
        r"Converting a tensor to a Python boolean might cause the trace to be incorrect",
        r"torch\.nn\.functional",
        "group_norm compares the batch size with 1 to raise an error; nothing else depends on it",
    ),
)


def export(network: nn.Module, example: Tensor, path: Path, *, opset: int, summary: dict[str, str]) -> None:
    with quietly(*QUIET), torch.inference_mode():
        traced = jit.trace(network, example)
        jit.save(traced, path, _extra_files={"summary.json": json.dumps(summary)})


def check(path: Path, signature: Signature, *, opset: int) -> None:
    try:
        with quietly(*QUIET):
            module = jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise GateFailure(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error
    for name, part in module.named_modules():
        if part.training:
            raise GateFailure(f"{path.name} was exported in training mode: module '{name}' is in it.")
    for node in module.inlined_graph.nodes():
        if node.schema() == "(no schema)":
            continue
        arguments = torch._C.parse_schema(node.schema()).arguments
        for argument, value in zip(arguments, node.inputs(), strict=True):
            if argument.name in ("train", "training") and value.toIValue():
                raise GateFailure(f"{path.name} was exported in training mode: {node.kind()}.")


def load(path: Path, *, optimize: bool = True) -> Run:
    torch.set_num_threads(1)
    with quietly(*QUIET):
        module = jit.load(path, map_location="cpu")

    def run(inputs: Array) -> tuple[Array, Array]:
        with torch.inference_mode(), jit.optimized_execution(optimize):  # type: ignore[attr-defined]
            logits, probabilities = module(torch.from_numpy(inputs))
        return logits.numpy(), probabilities.numpy()

    return run
