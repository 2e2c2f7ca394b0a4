"""`artifacts/` as a Triton model repository: `artifacts/<name>/config.pbtxt`, for every version of that name."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..inference.input_schema import TYPES
from .signature import Signature, TensorSignature

CONFIG = "config.pbtxt"

Fields = dict[str, list[Any]]


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
    try:
        config = _parse(path.read_text(encoding="utf-8"))
        largest = int(config.get("max_batch_size", ["0"])[-1])
        existing = {kind: [_shown(tensor) for tensor in config.get(kind, [])] for kind in ("input", "output")}
    except (ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it, or delete it to have it written anew.") from error
    remedy = f"give another export.name= than '{path.parent.name}'"
    for kind, tensors in (("input", (signature.input,)), ("output", signature.outputs)):
        found, expected = existing[kind], [_tensor(tensor) for tensor in tensors]
        if found != expected:
            shown = f"{kind} {'; '.join(found) or 'nothing'}, but this model {'; '.join(expected)}"
            raise UserError(f"{path} has {shown}: {remedy}.")
    if largest > max_batch_size:
        raise UserError(
            f"{path} lets batches of {largest} through, but export.max_batch_size={max_batch_size} is what would be "
            f"verified: raise it, or {remedy}."
        )


def _tensor(tensor: TensorSignature) -> str:
    return f"{tensor.name} TYPE_{TYPES[tensor.dtype]} [{', '.join(map(str, tensor.shape))}]"


def _shown(tensor: Fields) -> str:
    return f"{tensor['name'][-1]} {tensor['data_type'][-1]} [{', '.join(tensor['dims'])}]"


def _tensor_text(tensor: TensorSignature) -> str:
    dims = ", ".join(map(str, tensor.shape))
    fields = f'name: "{tensor.name}", data_type: TYPE_{TYPES[tensor.dtype]}, dims: [ {dims} ]'
    return "  { " + fields + " }"


def _parse(text: str) -> Fields:
    """Parses protobuf's text format, as far as a configuration needs it, to lists of values by field name."""
    found = re.findall(r'"(?:[^"\\]|\\.)*"|#.*|[{}\[\]:,;<>]|[^\s{}\[\]:,;<>"#]+', text)
    tokens = iter([token for token in found if not token.startswith("#")])
    fields = _fields(tokens)
    if next(tokens, None) is not None:
        raise ValueError("a bracket is closed that was not opened")
    return fields


def _fields(tokens: Iterator[str], end: str | None = None) -> Fields:
    fields: Fields = {}
    while (token := next(tokens, None)) != end:
        if token is None:
            raise ValueError(f"'{end}' is missing")
        if token in ",;":
            continue
        value = next(tokens, "")
        if value == ":":
            value = next(tokens, "")
        values = fields.setdefault(token, [])
        if value != "[":
            values.append(_value(value, tokens))
        else:
            while (value := next(tokens, "]")) != "]":
                if value != ",":
                    values.append(_value(value, tokens))
    return fields


def _value(token: str, tokens: Iterator[str]) -> Any:
    if token in ("{", "<"):
        return _fields(tokens, {"{": "}", "<": ">"}[token])
    if token in ("", "}", ">", "]"):
        raise ValueError("a value is missing")
    return token.strip('"')
