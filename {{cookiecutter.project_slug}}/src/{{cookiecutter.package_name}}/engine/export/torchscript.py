"""`formats=[torchscript]`: one file for libtorch in C++ and for `torch.jit.load`; code, so load only what you trust."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, jit, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from ..inference.signature import Array, Arrays
from ..warning_filters import WarningFilter, ignore_warnings, warnings_ignored
from .contract import Contract, GateFailure, names_in
from .formats import Run

if TYPE_CHECKING:
    from .network import DeployedNetwork, Source

SUMMARY = "summary.json"
# Records of an archive that torch writes besides those of the model.
VERSION_RECORDS, AUTOMATIC_RECORDS = ("version", ".data/version"), ("byteorder", ".data/serialization_id")
# A trace fixes what depended on a Python number. Torch's own functions read only shapes, which may be fixed.
CONVERSION_WARNING, TORCH_FUNCTIONS = "Converting a tensor to a", "torch/nn/functional.py"
IGNORED_WARNINGS = (
    # TorchScript is supported up to Python 3.13, the newest that this project allows (torch 2.14: a FutureWarning)
    WarningFilter(Warning, r"`torch\.jit\.\w+` is deprecated", r"torch\.jit\._\w+"),
)


def export(source: Source) -> bytes:
    from . import torch_export  # it imports lightning, which a process that only runs a file does not need

    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.filterwarnings("always", CONVERSION_WARNING, TracerWarning)
        ignore_warnings(*IGNORED_WARNINGS)
        traced = jit.trace(_traceable(source.network), source.tensors)
    for warning in caught:
        if not str(warning.message).startswith(CONVERSION_WARNING):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif not Path(warning.filename).as_posix().endswith(TORCH_FUNCTIONS):
            torch_export.export(source)  # raises for a value of a tensor, and accepts a shape
    written = io.BytesIO()
    with warnings_ignored(*IGNORED_WARNINGS):
        jit.save(traced, written, _extra_files={SUMMARY: json.dumps(source.contract.summary)})
    return _without_source_paths(written)


def _traceable(network: DeployedNetwork) -> nn.Module:
    """Returns the network without the LightningModule around its layers, whose properties no tracer can read."""
    from lightning.pytorch import LightningModule
    from torchmetrics import Metric, MetricCollection

    class Traceable(nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            return network(*tensors)  # type: ignore[no-any-return]

    module = network.network
    if not isinstance(module, LightningModule):
        return network
    layers = {name: part for name, part in module.named_children() if not isinstance(part, Metric | MetricCollection)}
    traceable = Traceable()
    vars(traceable).update(_parameters=module._parameters, _buffers=module._buffers, _modules=layers)
    return traceable.train(network.training)


def check(path: Path, contract: Contract) -> None:
    extra: dict[str, Any] = {SUMMARY: ""}
    with warnings_ignored(*IGNORED_WARNINGS):
        module = jit.load(path, map_location="cpu", _extra_files=extra)
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
    contract.check_summary(path.name, json.loads(extra[SUMMARY] or "{}"))


def load(path: Path, *, optimize: bool = True, num_threads: int = 1) -> Run:
    torch.set_num_threads(num_threads)
    extra: dict[str, Any] = {SUMMARY: ""}
    with warnings_ignored(*IGNORED_WARNINGS):
        module = jit.load(path, map_location="cpu", _extra_files=extra)

    run = called_by_name(module, *names_in(json.loads(extra[SUMMARY])))

    def run_optimized(inputs: Arrays) -> dict[str, Array]:
        with jit.optimized_execution(optimize):  # type: ignore[attr-defined]
            return run(inputs)

    return run_optimized


def _without_source_paths(archive: io.BytesIO) -> bytes:
    """Drops the records that name, for each line of code, the file of this machine it came from."""
    archive.seek(0)
    reader, copy = torch._C.PyTorchFileReader(archive), io.BytesIO()
    writer = torch._C.PyTorchFileWriter(copy)
    for name in reader.get_all_records():
        contents = reader.get_record(name)
        if name in VERSION_RECORDS:  # with another version the operators would be read as older ones
            writer.set_min_version(int(contents))
        elif name not in AUTOMATIC_RECORDS and not name.endswith(".debug_pkl"):
            writer.write_record(name, contents, len(contents))
    writer.write_end_of_file()
    return copy.getvalue()


def called_by_name(module: Callable[..., Any], input_names: Sequence[str], output_names: Sequence[str]) -> Run:
    """Returns a loaded file of torch's, from tensors in an order to a tuple of tensors, as a function by name."""

    def run(inputs: Arrays) -> dict[str, Array]:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in input_names))
        return {name: tensor.numpy() for name, tensor in zip(output_names, found, strict=True)}

    return run
