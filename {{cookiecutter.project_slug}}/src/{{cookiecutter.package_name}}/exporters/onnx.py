"""`formats=[onnx]`: one file for ONNX Runtime and everything that reads ONNX; data, not code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from ..quiet import Quiet, quietly
from ..refusal import Refusal
from . import Array, Run
from .network import GateFailure, Signature, TensorSignature

if TYPE_CHECKING:
    from torch import Tensor, nn

OLDEST_OPSET = 18  # torch writes this one, and converts it to an older one for some networks only
QUIET = (
    Quiet(
        FutureWarning,
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        r"copyreg",
        "torch 2.13 copies its own graphs in a way that it has deprecated",
    ),
)


def export(network: nn.Module, example: Tensor, path: Path, *, opset: int, summary: dict[str, str]) -> None:
    import torch

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise Refusal(f"export.opset={opset} is out of range: take {OLDEST_OPSET} to {newest}.")
    with quietly(*QUIET):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=["input"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip_notes(model)
    onnx.helper.set_model_props(model, summary)
    onnx.save(model, path)


def check(path: Path, signature: Signature, *, opset: int) -> None:
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise GateFailure(f"{path.name} cannot be read: {error}.") from error
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise GateFailure(f"{path.name} is refused by the ONNX checker: {error}") from error
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if found.get("ai.onnx") != opset:
        raise GateFailure(f"{path.name} has opset {found.get('ai.onnx')}, but export.opset={opset} was asked for.")
    _check_tensors(path, "inputs", list(model.graph.input), (signature.input,))
    _check_tensors(path, "outputs", list(model.graph.output), signature.outputs)
    _check_inference_mode(path, model)


def load(path: Path, *, optimize: bool = True) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = ["logits", "probabilities"]

    def run(inputs: Array) -> tuple[Array, Array]:
        logits, probabilities = session.run(outputs, {"input": inputs})
        return logits, probabilities

    return run


def _strip_notes(message: Any) -> None:
    """Removes what the exporter notes beside each node: stack traces, with paths of the machine that it ran on."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if isinstance(value, Iterable) else [value]:
                _strip_notes(part)


def _check_tensors(path: Path, kind: str, found: list[Any], expected: tuple[TensorSignature, ...]) -> None:
    if [value.name for value in found] != [tensor.name for tensor in expected]:
        raise GateFailure(
            f"{path.name} has the {kind} {', '.join(value.name for value in found)}, "
            f"but {', '.join(tensor.name for tensor in expected)} were exported."
        )
    for value, tensor in zip(found, expected, strict=True):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        batch, *shape = value.type.tensor_type.shape.dim
        if not batch.dim_param:
            raise GateFailure(f"{path.name} takes batches of {batch.dim_value} only: '{tensor.name}' has a fixed axis.")
        sides = tuple(side.dim_value for side in shape)
        if (dtype, sides) != (tensor.dtype, tensor.shape):
            raise GateFailure(
                f"{path.name} has '{tensor.name}' as {dtype} {sides}, but it should be {tensor.dtype} {tensor.shape}."
            )


def _check_inference_mode(path: Path, model: onnx.ModelProto) -> None:
    """Dropout and BatchNormalization say in the graph whether they train; ONNX Runtime's optimiser would hide it."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        mode = False
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            mode = bool(onnx.numpy_helper.to_array(constants[node.input[2]])) if node.input[2] in constants else True
        if node.op_type == "BatchNormalization":
            mode = any(item.name == "training_mode" and item.i for item in node.attribute)
        if mode or node.op_type in ("Bernoulli", "RandomUniform", "RandomUniformLike", "RandomNormalLike"):
            raise GateFailure(f"{path.name} was exported in training mode: node '{node.name}' ({node.op_type}).")
