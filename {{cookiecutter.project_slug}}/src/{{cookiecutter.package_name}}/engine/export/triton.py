"""`artifacts/` as a Triton model repository: `artifacts/<name>/config.pbtxt`, for every version of that name."""

import re
from pathlib import Path

from ..errors import UserError
from ..inference.signature import STRING, TYPES, Signature, TensorSignature

CONFIG = "config.pbtxt"


def config_text(name: str, signature: Signature) -> str:
    """Returns what Triton needs to serve `model.onnx`; an export never overwrites the file, so edits by hand stay."""
    inputs, outputs = (",\n".join(map(_tensor_text, tensors)) for tensors in (signature.inputs, signature.outputs))
    return f"""# Served as it stands: tritonserver --model-repository=<the folder above this one>
name: "{name}"
backend: "onnxruntime"
max_batch_size: {signature.max_batch_size}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{}}
"""


def check_config(path: Path, signature: Signature) -> None:
    """Refuses a bundle that does not fit the existing configuration: Triton would not load it, or exceed its limits."""
    text = _bare(re.sub("#.*", "", path.read_text(encoding="utf-8", errors="replace")))
    remedy = f"give another export.name= than '{path.parent.name}'"
    for tensor in (*signature.inputs, *signature.outputs):
        if _bare(_tensor_text(tensor)) not in text:
            raise UserError(f"{path} has no {_tensor_text(tensor).strip()}, which this model has: {remedy}.")
    largest = re.search(r"max_batch_size:(\d+)", text)
    if largest and int(largest[1]) > signature.max_batch_size:
        raise UserError(
            f"{path} lets batches of {largest[1]} through, but "
            f"export.max_batch_size={signature.max_batch_size} is what would be verified: raise it, or {remedy}."
        )


def _tensor_text(tensor: TensorSignature) -> str:
    dims = ", ".join(str(side if isinstance(side, int) else -1) for side in tensor.sample_shape)
    kind = "STRING" if tensor.dtype == STRING else TYPES[tensor.dtype]
    fields = f'name: "{tensor.name}", data_type: TYPE_{kind}, dims: [ {dims} ]'
    return "  { " + fields + " }"


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text)
