"""`formats=[onnx]`: one file for ONNX Runtime and everything that reads ONNX; data, not code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
from google.protobuf.message import Message

from ..errors import UserError
from ..inference.signature import BATCH, Array, Arrays, TensorSignature
from ..warning_filters import ONNX_AXIS_NAMES, TORCH_GRAPH_COPY, warnings_ignored
from .contract import Contract, GateFailure
from .formats import Run

if TYPE_CHECKING:
    from .network import Source

OLDEST_OPSET = 18  # torch writes this one, and converts it to an older one for some networks only
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def export(source: Source) -> bytes:
    return serialized(export_model(source), source)


def export_model(source: Source) -> onnx.ModelProto:
    """Exports in float32; the reduced formats start from it too."""
    import torch

    opset, newest = source.contract.opset, onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"export.opset={opset} is out of range: take {OLDEST_OPSET} to {newest}.")
    with warnings_ignored(TORCH_GRAPH_COPY, ONNX_AXIS_NAMES):
        program = torch.onnx.export(
            source.network,
            source.tensors,
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in source.contract.signature.inputs],
            output_names=[tensor.name for tensor in source.contract.signature.outputs],
            dynamic_shapes=source.dynamic_shapes(),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def serialized(model: onnx.ModelProto, source: Source) -> bytes:
    """Drops what the exporter adds to each node: stack traces with paths of this machine."""
    for message in messages(model):
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
    onnx.helper.set_model_props(model, source.contract.summary)
    contents: bytes = model.SerializeToString(deterministic=True)
    return contents


def check(path: Path, contract: Contract) -> None:
    check_model(path, contract)


def check_model(path: Path, contract: Contract) -> onnx.ModelProto:
    """Checks what holds for all ONNX formats; returns the model for the checks of one format."""
    model = onnx.load(path, load_external_data=False)
    for message in messages(model):
        if isinstance(message, onnx.TensorProto) and message.data_location == onnx.TensorProto.EXTERNAL:
            raise GateFailure(f"{path.name} keeps the tensor '{message.name}' in another file: it must be whole.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateFailure(f"{path.name} is refused by the ONNX checker: {' '.join(str(error).split())}") from error
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if found.get("ai.onnx") != contract.opset:
        raise GateFailure(f"{path.name} has opset {found.get('ai.onnx')}, but it should be {contract.opset}.")
    _check_tensors(path, "inputs", list(model.graph.input), contract.signature.inputs)
    _check_tensors(path, "outputs", list(model.graph.output), contract.signature.outputs)
    _check_inference_mode(path, model)
    contract.check_summary(path.name, {entry.key: entry.value for entry in model.metadata_props})
    return model


def load(path: Path, *, optimize: bool = True, num_threads: int = 1) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    names = [value.name for value in session.get_outputs()]

    def run(inputs: Arrays) -> dict[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


def messages(message: Message) -> Iterator[Any]:
    """Yields the message and all messages within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Iterable) else [value]:
                yield from messages(part)


def _check_tensors(path: Path, kind: str, found: list[Any], expected: tuple[TensorSignature, ...]) -> None:
    if [value.name for value in found] != [tensor.name for tensor in expected]:
        raise GateFailure(
            f"{path.name} has the {kind} {', '.join(value.name for value in found)}, "
            f"but {', '.join(tensor.name for tensor in expected)} were exported."
        )
    for value, tensor in zip(found, expected, strict=True):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        dims = list(value.type.tensor_type.shape.dim)
        for dim, side in zip(dims, tensor.shape, strict=False):
            if isinstance(side, str) and not dim.dim_param:
                what = f"batches of {dim.dim_value}" if side == BATCH else f"{dim.dim_value} along '{side}'"
                raise GateFailure(f"{path.name} takes {what} only: '{tensor.name}' has a fixed axis.")
        sides = tuple(dim.dim_value or dim.dim_param for dim in dims)
        fixed = tuple(None if isinstance(side, str) else side for side in tensor.shape)
        if (dtype, tuple(None if dim.dim_param else dim.dim_value for dim in dims)) != (tensor.dtype, fixed):
            raise GateFailure(f"{path.name} has '{tensor.name}' as {dtype} {sides}, but it should be {tensor}.")


def _check_inference_mode(path: Path, model: onnx.ModelProto) -> None:
    """Refuses a Dropout or BatchNormalization in training mode, which ONNX Runtime's optimiser would hide.

    Functions and the branches of an `If` are searched too.
    """
    nodes = [message for message in messages(model) if isinstance(message, onnx.NodeProto)]
    constants = [(node.output[0], node.attribute[0].t) for node in nodes if node.op_type == "Constant"]
    constants += [(tensor.name, tensor) for tensor in messages(model) if isinstance(tensor, onnx.TensorProto)]
    for node in nodes:
        mode = node.op_type in RANDOM
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            values = [onnx.numpy_helper.to_array(tensor) for name, tensor in constants if name == node.input[2]]
            mode = any(map(bool, values)) or not values
        if node.op_type == "BatchNormalization":
            mode = any(item.name == "training_mode" and item.i for item in node.attribute)
        if mode:
            raise GateFailure(f"{path.name} was exported in training mode: node '{node.name}' ({node.op_type}).")
