"""The Open Inference Protocol v2: requests to arrays, arrays to answers, in JSON and with the binary tensor extension.

https://github.com/open-inference/open-inference-protocol, and for the extension Triton's `extension_binary_data.md`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import orjson

from ..inference.datatypes import TYPES
from .tensors import Array, Rejected, check_range, from_bytes, from_json, shown

Entry = Mapping[str, Any]

EXTENSIONS = ["binary_tensor_data"]
HEADER_LENGTH = "inference-header-content-length"
COMMAS_BESIDE_DATA = 4096  # between names, shapes and parameters


class Output(NamedTuple):
    name: str
    binary: bool


@dataclass(frozen=True)
class Request:
    inputs: Array  # (B, ...)
    outputs: list[Output]
    id: str | None


@dataclass(frozen=True)
class Model:
    """What a server says of itself, and holds requests to."""

    name: str
    version: str
    input: Entry  # as in the manifest
    outputs: Sequence[Entry]
    max_batch_size: int

    @cached_property
    def max_elements(self) -> int:
        sides: list[int] = self.input["shape"][1:]
        return math.prod(sides) * self.max_batch_size

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.input["dtype"])

    @cached_property
    def has_gaps(self) -> bool:
        """Whether a value may be missing, as in a row of a table."""
        return "columns" in self.input

    @cached_property
    def datatypes(self) -> dict[str, str]:
        """Of inputs and outputs, as the protocol names them."""
        return {tensor["name"]: TYPES[tensor["dtype"]] for tensor in (self.input, *self.outputs)}

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [_described(self.input)],
            "outputs": [_described(tensor) for tensor in self.outputs],
        }


def read(body: bytes, header_length: str | None, model: Model) -> Request:
    """Raises `Rejected` for whatever the model cannot take."""
    size = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdecimal() or int(header_length[:20]) > len(body):
            raise Rejected(f"Inference-Header-Content-Length={shown(header_length)} is no length within this request.")
        size = int(header_length)
    asked = parse(body, size, model.max_elements)
    if not isinstance(asked, dict):
        raise Rejected("the request is no JSON object with 'inputs'.")
    request_id, parameters = asked.get("id"), _parameters(asked, "the request")
    if request_id is not None and not isinstance(request_id, str):
        raise Rejected("'id' is no text.")
    all_binary = parameters.get("binary_data_output", False) is True
    return Request(_input(asked, memoryview(body)[size:], model), _outputs(asked, model, all_binary), request_id)


def parse(body: bytes, size: int, max_elements: int) -> Any:
    """The JSON in the first `size` bytes; that of too many numbers would take far more memory than its text."""
    if body.count(b",", 0, size) > max_elements + COMMAS_BESIDE_DATA:
        raise Rejected(f"the request holds more than the {max_elements:,} numbers that are taken.", 413, "too_large")
    try:
        return orjson.loads(memoryview(body)[:size])
    except orjson.JSONDecodeError as error:
        raise Rejected(f"the request is no JSON: {error}.") from error


def answer(request: Request, arrays: Mapping[str, Array], model: Model) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where raw tensors follow."""
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
    told: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": entries}
    if request.id is not None:
        told["id"] = request.id
    header = orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *raw]), len(header)) if raw else (header, None)


def _described(tensor: Entry) -> dict[str, Any]:
    return {"name": tensor["name"], "datatype": TYPES[tensor["dtype"]], "shape": tensor["shape"]}


def _input(asked: Entry, raw: memoryview, model: Model) -> Array:
    entries, name = asked.get("inputs"), model.input["name"]
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise Rejected(f"'inputs' must hold one tensor, '{name}'.")
    (entry,) = entries
    if entry.get("name") != name:
        raise Rejected(f"the input '{shown(entry.get('name'))}' is not known: this model takes '{name}'.")
    if entry.get("datatype") != model.datatypes[name]:
        raise Rejected(
            f"'{name}' has the datatype '{shown(entry.get('datatype'))}', but this model takes {model.datatypes[name]}."
        )
    shape = _shape(entry, model)
    parameters = _parameters(entry, f"'{name}'")
    if "shared_memory_region" in parameters:
        raise Rejected("shared memory is not offered here: send the data in the request.")
    if "binary_data_size" in parameters:
        array = from_bytes(raw, parameters["binary_data_size"], shape, model.dtype, name)
    elif len(raw):
        raise Rejected(f"{len(raw)} bytes follow the JSON, but '{name}' has no parameter 'binary_data_size'.")
    elif not isinstance(data := entry.get("data"), list):
        raise Rejected(f"'{name}' has no list 'data', and no parameter 'binary_data_size'.")
    else:
        array = from_json(data, shape, model.dtype, f"'data' of '{name}'", model.has_gaps)
    low, high = model.input["range"]
    check_range(array, low, high, f"'{name}'", model.has_gaps)
    return array


def _shape(entry: Entry, model: Model) -> tuple[int, ...]:
    shape, sides = entry.get("shape"), model.input["shape"][1:]
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise Rejected(f"'shape' of '{model.input['name']}' is no list of whole numbers.")
    if len(shape) != len(sides) + 1 or shape[1:] != sides:
        expected = ", ".join(map(str, ["batch", *sides]))
        raise Rejected(f"'{model.input['name']}' has the shape {shown(shape)}, but this model takes [{expected}].")
    if not 1 <= shape[0] <= model.max_batch_size:
        raise Rejected(f"a batch of {shown(shape[0])} is out of range: this model takes 1 to {model.max_batch_size}.")
    return tuple(shape)


def _outputs(asked: Entry, model: Model, all_binary: bool) -> list[Output]:
    known = [tensor["name"] for tensor in model.outputs]
    if (entries := asked.get("outputs")) is None:
        return [Output(name, all_binary) for name in known]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Rejected("'outputs' is no list of tensors.")
    found = []
    for entry in entries:
        if entry.get("name") not in known:
            name = shown(entry.get("name"))
            raise Rejected(f"the output '{name}' is not known: this model gives {', '.join(known)}.")
        parameters = _parameters(entry, f"'{entry['name']}'")
        if parameters.keys() & {"classification", "shared_memory_region"}:
            raise Rejected("'classification' and shared memory are not offered here: take the tensors themselves.")
        found.append(Output(entry["name"], parameters.get("binary_data", all_binary) is True))
    if len({output.name for output in found}) != len(found):
        raise Rejected("'outputs' names a tensor twice.")
    return found or [Output(name, all_binary) for name in known]


def _parameters(entry: Entry, of: str) -> Entry:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Rejected(f"'parameters' of {of} is no JSON object.")
    return parameters
