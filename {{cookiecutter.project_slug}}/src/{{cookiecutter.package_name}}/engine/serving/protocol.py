"""The Open Inference Protocol v2: reads requests and writes responses, in JSON and with the binary tensor extension.

https://github.com/open-inference/open-inference-protocol, and for the extension Triton's `extension_binary_data.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from ..inference.signature import BATCH, TYPES, Array, Arrays, Signature, TensorSignature
from .payload import RequestError, bytes_of, check_range, excerpt, parse_json, tensor_from_bytes, tensor_from_json

Entry = Mapping[str, Any]

# What a request may hold; KServe's client names the model in it once more.
REQUEST_KEYS = {"id", "model_name", "model_version", "inputs", "outputs", "parameters"}
INPUT_KEYS = {"name", "shape", "datatype", "parameters", "data"}
OUTPUT_KEYS = {"name", "parameters"}

EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
HEADER_LENGTH = "inference-header-content-length"


class RequestedOutput(NamedTuple):
    name: str
    binary: bool


@dataclass(frozen=True)
class InferenceRequest:
    inputs: dict[str, Array]
    outputs: list[RequestedOutput]
    id: str | None


class ModelMetadata:
    """The names, types and shapes of a manifest, to which requests are held."""

    def __init__(self, manifest: Entry) -> None:
        self.name, self.version = manifest["name"], str(manifest["version"])
        self.signature = Signature.of_manifest(manifest)
        self.inputs = {tensor.name: tensor for tensor in self.signature.inputs}
        self.outputs = {tensor.name: tensor for tensor in self.signature.outputs}
        self.input_names = ", ".join(f"'{name}'" for name in self.inputs)  # for sentences

    def to_response(self) -> dict[str, Any]:
        """Returns the response to a request for the metadata of the model."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": _described(self.signature.inputs, "datatype", "", "shape", 0),
            "outputs": _described(self.signature.outputs, "datatype", "", "shape", 0),
        }

    def to_config(self) -> dict[str, Any]:
        """Returns the response to a request for the configuration of the model, as Triton has it."""
        first = 1 if self.signature.max_batch_size else 0
        return {
            "name": self.name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": self.signature.max_batch_size,
            "input": _described(self.signature.inputs, "data_type", "TYPE_", "dims", first),
            "output": _described(self.signature.outputs, "data_type", "TYPE_", "dims", first),
            **({"dynamic_batching": {}} if first else {}),
        }


def _described(
    tensors: Sequence[TensorSignature], type_key: str, prefix: str, shape_key: str, first: int
) -> list[dict[str, Any]]:
    """Describes tensors by their axes from `first` on; -1 stands for a free one."""
    return [
        {
            "name": tensor.name,
            type_key: prefix + ("STRING" if prefix and tensor.dtype == "string" else TYPES[tensor.dtype]),
            shape_key: [side if isinstance(side, int) else -1 for side in tensor.shape[first:]],
        }
        for tensor in tensors
    ]


def read(body: bytes, header_length: str | None, model: ModelMetadata) -> InferenceRequest:
    """Reads an inference request; raises `RequestError` for one that the model cannot take."""
    size = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdecimal() or int(header_length[:20]) > len(body):
            given = f"Inference-Header-Content-Length={excerpt(header_length)}"
            raise RequestError(f"{given} is no length within this request.")
        size = int(header_length)
    request = parse_json(body, size, model.signature.max_elements)
    if not isinstance(request, dict):
        raise RequestError("the request is no JSON object with 'inputs'.")
    parameters = _parameters(request, "the request", REQUEST_KEYS, "binary_data_output")
    request_id = request.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError("'id' is no text.")
    all_binary = parameters.get("binary_data_output", False) is True
    inputs = _inputs(request, memoryview(body)[size:], model)
    return InferenceRequest(inputs, _outputs(request, model, all_binary), request_id)


def write(request: InferenceRequest, arrays: Arrays, model: ModelMetadata) -> tuple[bytes, int | None]:
    """Returns the body of the response, and the length of its JSON if raw tensors follow."""
    entries, raw = [], []
    for name, binary in request.outputs:
        array = arrays[name]
        entry: dict[str, Any] = {"name": name, "datatype": TYPES[model.outputs[name].dtype], "shape": array.shape}
        if binary:
            raw.append(bytes_of(array))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            values = np.ascontiguousarray(array.ravel())
            entry["data"] = values.tolist() if values.dtype.kind == "O" or values.dtype == np.float16 else values
        entries.append(entry)
    response: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": entries}
    if request.id is not None:
        response["id"] = request.id
    header = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *raw]), len(header)) if raw else (header, None)


def _inputs(request: Entry, raw: memoryview, model: ModelMetadata) -> dict[str, Array]:
    entries, names = request.get("inputs"), model.input_names
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError(f"'inputs' must be a list of tensors: {names}.")
    arrays: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    place = 0
    for entry in entries:
        name = entry.get("name")
        if not isinstance(name, str) or name not in model.inputs:
            raise RequestError(f"the input '{excerpt(name)}' is not known: this model takes {names}.")
        if name in arrays:
            raise RequestError(f"'inputs' names '{name}' twice.")
        tensor = model.inputs[name]
        shape = _shape(entry, tensor, sizes, model.signature.max_batch_size)
        parameters = _parameters(entry, f"'{name}'", INPUT_KEYS, "binary_data_size")
        if "binary_data_size" in parameters:
            end = place + _size(parameters["binary_data_size"], len(raw) - place, name)
            arrays[name], place = tensor_from_bytes(raw[place:end], shape, tensor), end
        elif not isinstance(data := entry.get("data"), list):
            raise RequestError(f"'{name}' has no list 'data', and no parameter 'binary_data_size'.")
        else:
            arrays[name] = tensor_from_json(data, shape, tensor, f"'data' of '{name}'")
        check_range(arrays[name], tensor, f"'{name}'")
    if missing := [name for name in model.inputs if name not in arrays]:
        raise RequestError(f"the input '{missing[0]}' is missing: this model takes {names}.")
    if place != len(raw):
        raise RequestError(f"{len(raw) - place} bytes follow the JSON that belong to no tensor's 'binary_data_size'.")
    return {name: arrays[name] for name in model.inputs}  # in one order: requests are compared by their shapes


def _size(size: Any, most: int, name: str) -> int:
    """Returns the number of bytes that the client declared for one tensor."""
    if type(size) is not int or not 0 <= size <= most:
        raise RequestError(f"binary_data_size={excerpt(size)} of '{name}' does not fit: {most} bytes follow the JSON.")
    return size


def _shape(entry: Entry, tensor: TensorSignature, sizes: dict[str, int], max_batch_size: int) -> tuple[int, ...]:
    """Returns the shape of a tensor; adds those of its free axes to `sizes`."""
    if entry.get("datatype") != TYPES[tensor.dtype]:
        given, expected = excerpt(entry.get("datatype")), TYPES[tensor.dtype]
        raise RequestError(f"'{tensor.name}' has the datatype '{given}', but this model takes {expected}.")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise RequestError(f"'shape' of '{tensor.name}' is no list of whole numbers.")
    try:
        tensor.bind(shape, sizes)
    except ValueError as error:
        raise RequestError(f"{error}.") from error
    if max_batch_size and not 1 <= sizes[BATCH] <= max_batch_size:
        size = excerpt(sizes[BATCH])
        raise RequestError(f"a batch of {size} is out of range: this model takes 1 to {max_batch_size}.")
    return tuple(shape)


def _outputs(request: Entry, model: ModelMetadata, all_binary: bool) -> list[RequestedOutput]:
    known = list(model.outputs)
    if (entries := request.get("outputs")) is None:
        return [RequestedOutput(name, all_binary) for name in known]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError("'outputs' is no list of tensors.")
    found = []
    for entry in entries:
        if entry.get("name") not in known:
            name = excerpt(entry.get("name"))
            raise RequestError(f"the output '{name}' is not known: this model gives {', '.join(known)}.")
        parameters = _parameters(entry, f"'{entry['name']}'", OUTPUT_KEYS, "binary_data")
        found.append(RequestedOutput(entry["name"], parameters.get("binary_data", all_binary) is True))
    if len({output.name for output in found}) != len(found):
        raise RequestError("'outputs' names a tensor twice.")
    return found or [RequestedOutput(name, all_binary) for name in known]


def _parameters(entry: Entry, owner: str, keys: set[str], parameter: str) -> Entry:
    """Returns the parameters; refuses what is not one of `keys`, and every parameter but one: they would be ignored."""
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(f"'parameters' of {owner} is no JSON object.")
    for name in [*(entry.keys() - keys), *(parameters.keys() - {parameter})]:
        raise RequestError(f"'{excerpt(name)}' of {owner} is not offered here: leave it out.")
    return parameters
