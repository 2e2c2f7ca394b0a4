"""`artifacts/` as a Triton model repository: `artifacts/<name>/config.pbtxt`, for every version of that name."""

import re
from pathlib import Path

from ..errors import UserError
from ..inference.input_schema import TYPES
from .signature import Signature, TensorSignature

CONFIG = "config.pbtxt"


def config_text(name: str, signature: Signature, max_batch_size: int) -> str:
    """Returns what Triton needs to serve `model.onnx`; an export never overwrites the file, so edits by hand stay."""
    outputs = ",\n".join(_tensor_text(tensor) for tensor in signature.outputs)
    return f"""# Served as it stands: tritonserver --model-repository=<the folder above this one>
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input [
{_tensor_text(signature.input)}
]
output [
{outputs}
]
dynamic_batching {{}}
"""


def check_config(path: Path, signature: Signature, max_batch_size: int) -> None:
    """Refuses a bundle that does not fit the existing configuration: Triton would not load it, or exceed its limits."""
    text = _bare(re.sub("#.*", "", path.read_text(encoding="utf-8", errors="replace")))
    remedy = f"give another export.name= than '{path.parent.name}'"
    for tensor in (signature.input, *signature.outputs):
        if _bare(_tensor_text(tensor)) not in text:
            raise UserError(f"{path} has no {_tensor_text(tensor).strip()}, which this model has: {remedy}.")
    largest = re.search(r"max_batch_size:(\d+)", text)
    if largest and int(largest[1]) > max_batch_size:
        raise UserError(
            f"{path} lets batches of {largest[1]} through, but export.max_batch_size={max_batch_size} is what would be "
            f"verified: raise it, or {remedy}."
        )


def _tensor_text(tensor: TensorSignature) -> str:
    dims = ", ".join(map(str, tensor.shape))
    fields = f'name: "{tensor.name}", data_type: TYPE_{TYPES[tensor.dtype]}, dims: [ {dims} ]'
    return "  { " + fields + " }"


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text)
