"""`formats=[torch_export]`: torch's own graph, for AOTInductor and ExecuTorch; code, so load only what you trust."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from ..inference.signature import BATCH
from ..warning_filters import TORCH_GRAPH_COPY, warnings_ignored
from .contract import Contract, GateFailure, names_in
from .formats import Run
from .network import Source
from .torchscript import called_by_name

SUMMARY = "summary.json"
TORCH_NAMESPACES = ("aten", "prim", "prims")  # of operators that every torch has
# Metadata of a node that names the Python code it came from, with paths of this machine.
SOURCE_METADATA = ("stack_trace", "nn_module_stack", "source_fn_stack")


def export(source: Source) -> bytes:
    written = io.BytesIO()
    with warnings_ignored(TORCH_GRAPH_COPY):
        program = torch.export.export(source.network, source.tensors, dynamic_shapes=source.dynamic_shapes(Dim.DYNAMIC))
        for graph in program.graph_module.modules():
            if isinstance(graph, GraphModule):
                for node in graph.graph.nodes:
                    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in TORCH_NAMESPACES:
                        raise ValueError(f"it would run only where the operator {node.target} is registered")
                    for key in SOURCE_METADATA:
                        node.meta.pop(key, None)
        torch.export.save(program, written, extra_files={SUMMARY: json.dumps(source.contract.summary)})
    return written.getvalue()


def check(path: Path, contract: Contract) -> None:
    extra: dict[str, Any] = {SUMMARY: ""}
    program = _read(path, extra)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            if isinstance(node.target, torch._ops.OpOverload):
                names = [argument.name for argument in node.target._schema.arguments]
                given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}  # the last defaults are left out
                if any(given.get(name) for name in ("train", "training")):
                    raise GateFailure(f"{path.name} was exported in training mode: {node.target}.")
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    for node, tensor in zip(inputs, contract.signature.inputs, strict=True):
        for size, side in zip(node.meta["val"].shape, tensor.shape, strict=True):
            if isinstance(side, str) and isinstance(size, int):
                what = f"batches of {size}" if side == BATCH else f"{size} along '{side}'"
                raise GateFailure(f"{path.name} takes {what} only: '{tensor.name}' has a fixed axis.")
    contract.check_summary(path.name, json.loads(extra[SUMMARY] or "{}"))


def load(path: Path, *, optimize: bool = True, num_threads: int = 1) -> Run:
    """`optimize` changes nothing: there is no optimiser."""
    torch.set_num_threads(num_threads)
    extra: dict[str, Any] = {SUMMARY: ""}
    module = _read(path, extra).module()
    return called_by_name(module, *names_in(json.loads(extra[SUMMARY])))


def _read(path: Path, extra_files: dict[str, Any]) -> ExportedProgram:
    with warnings_ignored(TORCH_GRAPH_COPY):
        return torch.export.load(path, extra_files=extra_files)
