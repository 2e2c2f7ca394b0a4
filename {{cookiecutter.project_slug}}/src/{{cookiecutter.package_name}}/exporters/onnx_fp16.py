"""`formats=[onnx_fp16]`: half the size; computed in 16 bits on a GPU, and in 32 bits where a device cannot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from .contract import Contract, GateFailure
from .onnx import check_model, export_model, load, serialized

if TYPE_CHECKING:
    from .network import Source

__all__ = ["check", "export", "load"]


def export(source: Source) -> bytes:
    """Input and outputs keep their types, so that no client changes."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return serialized(convert_float_to_float16(export_model(source), keep_io_types=True), source)


def check(path: Path, contract: Contract) -> None:
    model = check_model(path, contract)
    if not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise GateFailure(f"{path.name} holds no weight of 16 bits.")
