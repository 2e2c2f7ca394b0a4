"""`formats=[onnx_fp16]`: half the size; computed in 16 bits on a GPU, and in 32 bits on devices that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from .contract import Contract, GateFailure
from .onnx import check_model, export_model, load, messages, serialized

if TYPE_CHECKING:
    from .network import Source

__all__ = ["check", "export", "load"]

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators with weights


def export(source: Source) -> bytes:
    """Input and outputs keep their types, so that no client changes.

    What comes before the first product stays in 32 bits: raw input may be larger than 16 bits hold.
    """
    model = export_model(source)
    nodes = list(model.graph.node)
    first = next((place for place, node in enumerate(nodes) if node.op_type in PRODUCTS), 0)
    before, rest = nodes[:first], nodes[first:]
    computed = {name for node in before for name in node.output} | {value.name for value in model.graph.input}
    read_before, read = _inputs(before), _inputs(rest)
    between = computed & read
    inputs = [value for value in (*model.graph.input, *model.graph.value_info) if value.name in between]
    reduced = _reduced(model, rest, inputs, read)
    in_32_bits = [value.name for value in inputs if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    casts = [
        onnx.helper.make_node("Cast", [name], [_half_name(name)], to=onnx.TensorProto.FLOAT16) for name in in_32_bits
    ]
    weights_before = [tensor for tensor in model.graph.initializer if tensor.name in read_before]
    both = {tensor.name for tensor in weights_before} & read
    renamed = both.union(in_32_bits)
    for message in messages(reduced.graph):
        if isinstance(message, onnx.NodeProto):
            message.input[:] = [_half_name(name) if name in renamed else name for name in message.input]
    for tensor in reduced.graph.initializer:
        tensor.name = _half_name(tensor.name) if tensor.name in both else tensor.name
    weights = [*weights_before, *reduced.graph.initializer]
    for field, values in (("node", [*before, *casts, *reduced.graph.node]), ("initializer", weights)):
        parts = [type(value).FromString(value.SerializeToString()) for value in values]
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(parts)
    model.graph.ClearField("value_info")
    # ONNX Runtime 1.32 ends with a segmentation fault where the type of what an attention layer adds is not written.
    return serialized(onnx.shape_inference.infer_shapes(model), source)


def _reduced(
    model: onnx.ModelProto, rest: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], read: set[str]
) -> onnx.ModelProto:
    """Returns the nodes `rest` as a model in 16 bits with these `inputs`; it has the outputs of the graph."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    part = onnx.ModelProto.FromString(model.SerializeToString())
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    for field, values in (("node", rest), ("input", inputs), ("initializer", weights), ("value_info", [])):
        part.graph.ClearField(field)
        getattr(part.graph, field).extend(values)
    outputs = [value.name for value in model.graph.output]
    reduced: onnx.ModelProto = convert_float_to_float16(part, keep_io_types=outputs)
    return reduced


def _inputs(nodes: list[onnx.NodeProto]) -> set[str]:
    """Returns the names that the nodes read, within their branches too."""
    inner = (message for node in nodes for message in messages(node) if isinstance(message, onnx.NodeProto))
    return {name for node in inner for name in node.input}


def _half_name(name: str) -> str:
    return f"{name}_16_bits"


def check(path: Path, contract: Contract) -> None:
    model = check_model(path, contract)
    if not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise GateFailure(f"{path.name} holds no weight of 16 bits.")
