"""The Open Inference Protocol v2: reads requests and writes responses, in JSON and with the binary tensor extension.

https://github.com/open-inference/open-inference-protocol, and for the extension Triton's `extension_binary_data.md`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from ..inference.input_schema import TYPES, InputSchema
from .payload import Array, RequestError, check_range, excerpt, parse_json, tensor_from_bytes, tensor_from_json

Entry = Mapping[str, Any]

EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
HEADER_LENGTH = "inference-header-content-length"


class RequestedOutput(NamedTuple):
    name: str
    binary: bool


@dataclass(frozen=True)
class InferenceRequest:
    inputs: Array  # (B, ...)
    outputs: list[RequestedOutput]
    id: str | None


class ModelMetadata:
    """The names, types and shapes of a manifest, to which requests are held."""

    def __init__(self, manifest: Entry) -> None:
        self.name, self.version = manifest["name"], str(manifest["version"])
        (self.input,), self.outputs = manifest["inputs"], manifest["outputs"]
        self.schema, self.max_batch_size = InputSchema.from_dict(self.input), manifest["max_batch_size"]
        self.max_elements = math.prod(self.schema.shape) * self.max_batch_size
        self.datatypes = {tensor["name"]: TYPES[tensor["dtype"]] for tensor in (self.input, *self.outputs)}

    def to_response(self) -> dict[str, Any]:
        """Returns the response to a request for the metadata of the model."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [self._describe(self.input)],
            "outputs": [self._describe(tensor) for tensor in self.outputs],
        }

    def to_config(self) -> dict[str, Any]:
        """Returns the response to a request for the configuration of the model, as Triton has it."""
        return {
            "name": self.name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": self.max_batch_size,
            "input": [self._configure(self.input)],
            "output": [self._configure(tensor) for tensor in self.outputs],
            "dynamic_batching": {},
        }

    def _configure(self, tensor: Entry) -> dict[str, Any]:
        datatype = f"TYPE_{self.datatypes[tensor['name']]}"
        return {"name": tensor["name"], "data_type": datatype, "dims": tensor["shape"][1:]}

    def _describe(self, tensor: Entry) -> dict[str, Any]:
        return {"name": tensor["name"], "datatype": self.datatypes[tensor["name"]], "shape": tensor["shape"]}


def read(body: bytes, header_length: str | None, model: ModelMetadata) -> InferenceRequest:
    """Reads an inference request; raises `RequestError` for one that the model cannot take."""
    size = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdecimal() or int(header_length[:20]) > len(body):
            given = f"Inference-Header-Content-Length={excerpt(header_length)}"
            raise RequestError(f"{given} is no length within this request.")
        size = int(header_length)
    request = parse_json(body, size, model.max_elements)
    if not isinstance(request, dict):
        raise RequestError("the request is no JSON object with 'inputs'.")
    request_id, parameters = request.get("id"), _parameters(request, "the request")
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError("'id' is no text.")
    all_binary = parameters.get("binary_data_output", False) is True
    inputs = _input(request, memoryview(body)[size:], model)
    return InferenceRequest(inputs, _outputs(request, model, all_binary), request_id)


def write(request: InferenceRequest, arrays: Mapping[str, Array], model: ModelMetadata) -> tuple[bytes, int | None]:
    """Returns the body of the response, and the length of its JSON if raw tensors follow."""
    entries, raw = [], []
    for name, binary in request.outputs:
        array = np.ascontiguousarray(arrays[name])
        entry: dict[str, Any] = {"name": name, "datatype": model.datatypes[name], "shape": array.shape}
        if binary:
            raw.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = array.ravel()
        entries.append(entry)
    response: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": entries}
    if request.id is not None:
        response["id"] = request.id
    header = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *raw]), len(header)) if raw else (header, None)


def _input(request: Entry, raw: memoryview, model: ModelMetadata) -> Array:
    entries, name = request.get("inputs"), model.input["name"]
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise RequestError(f"'inputs' must hold one tensor, '{name}'.")
    (entry,) = entries
    if entry.get("name") != name:
        raise RequestError(f"the input '{excerpt(entry.get('name'))}' is not known: this model takes '{name}'.")
    if entry.get("datatype") != model.datatypes[name]:
        given, expected = excerpt(entry.get("datatype")), model.datatypes[name]
        raise RequestError(f"'{name}' has the datatype '{given}', but this model takes {expected}.")
    shape = _shape(entry, model)
    parameters = _parameters(entry, f"'{name}'")
    if "shared_memory_region" in parameters:
        raise RequestError("shared memory is not offered here: send the data in the request.")
    if "binary_data_size" in parameters:
        array = tensor_from_bytes(raw, parameters["binary_data_size"], shape, model.schema.dtype, name)
    elif len(raw):
        raise RequestError(f"{len(raw)} bytes follow the JSON, but '{name}' has no parameter 'binary_data_size'.")
    elif not isinstance(data := entry.get("data"), list):
        raise RequestError(f"'{name}' has no list 'data', and no parameter 'binary_data_size'.")
    else:
        array = tensor_from_json(data, shape, model.schema, f"'data' of '{name}'")
    check_range(array, model.schema, f"'{name}'")
    return array


def _shape(entry: Entry, model: ModelMetadata) -> tuple[int, ...]:
    shape, sides = entry.get("shape"), model.input["shape"][1:]
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise RequestError(f"'shape' of '{model.input['name']}' is no list of whole numbers.")
    if len(shape) != len(sides) + 1 or shape[1:] != sides:
        expected = ", ".join(map(str, ["batch", *sides]))
        raise RequestError(
            f"'{model.input['name']}' has the shape {excerpt(shape)}, but this model takes [{expected}]."
        )
    if not 1 <= shape[0] <= model.max_batch_size:
        size = excerpt(shape[0])
        raise RequestError(f"a batch of {size} is out of range: this model takes 1 to {model.max_batch_size}.")
    return tuple(shape)


def _outputs(request: Entry, model: ModelMetadata, all_binary: bool) -> list[RequestedOutput]:
    known = [tensor["name"] for tensor in model.outputs]
    if (entries := request.get("outputs")) is None:
        return [RequestedOutput(name, all_binary) for name in known]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError("'outputs' is no list of tensors.")
    found = []
    for entry in entries:
        if entry.get("name") not in known:
            name = excerpt(entry.get("name"))
            raise RequestError(f"the output '{name}' is not known: this model gives {', '.join(known)}.")
        parameters = _parameters(entry, f"'{entry['name']}'")
        if parameters.keys() & {"classification", "shared_memory_region"}:
            raise RequestError("'classification' and shared memory are not offered here: take the tensors themselves.")
        found.append(RequestedOutput(entry["name"], parameters.get("binary_data", all_binary) is True))
    if len({output.name for output in found}) != len(found):
        raise RequestError("'outputs' names a tensor twice.")
    return found or [RequestedOutput(name, all_binary) for name in known]


def _parameters(entry: Entry, owner: str) -> Entry:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(f"'parameters' of {owner} is no JSON object.")
    return parameters
