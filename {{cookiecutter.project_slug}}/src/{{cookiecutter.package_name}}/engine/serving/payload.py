"""The data in requests: tensors as JSON or raw bytes, and single samples as files or JSON."""

import json
import math
import reprlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
from python_multipart import create_form_parser
from python_multipart.multipart import parse_options_header

from ..inference.inputs import reason_of
from ..inference.signature import STRING, TYPES, Array, ReadSamples, Signature, TensorSignature, reader_of

# Kinds of JSON values by the kind of the tensor; whole numbers above those of int64 are Python's objects.
JSON_KINDS = {"b": "b", "u": "iuO", "i": "iu", "f": "iuf", "O": "U"}
MAX_NUMBERS = 2**21  # in the JSON of a model whose inputs have no fixed size; raw bytes may hold more
MAX_SAMPLES = 10_000  # of one request to /predict
COMMAS_BESIDE_DATA = 4096  # between names, shapes and parameters


class RequestError(Exception):
    """A request that is refused: one sentence for the client, the HTTP status, and the reason in the metrics."""

    def __init__(self, sentence: str, status: int = 400, reason: str = "malformed") -> None:
        super().__init__(sentence)
        self.status, self.reason = status, reason


def parse_json(body: bytes, size: int, max_elements: int | None) -> Any:
    """Parses the first `size` bytes, unless they hold so many numbers that these would fill the memory."""
    most = MAX_NUMBERS if max_elements is None else max_elements
    if body.count(b",", 0, size) > most + COMMAS_BESIDE_DATA:
        raise RequestError(f"the request holds more than the {most:,} numbers that are taken.", 413, "too_large")
    try:
        parsed = orjson.loads(memoryview(body)[:size])
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is no JSON: {error}.") from error
    try:
        if body.count(b":", 0, size) != _num_keys(parsed):  # a name that stands twice, or a colon within text
            json.loads(body[:size], object_pairs_hook=_refuse_twice)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no JSON that can be read: {excerpt(error)}.") from error
    return parsed


def _num_keys(parsed: Any) -> int:
    """Counts the names in objects; those within lists of numbers are missed, and make it too small."""
    num_keys, rest = 0, [parsed]
    for value in rest:  # which grows meanwhile
        if type(value) is dict:
            num_keys += len(value)
            rest += value.values()
        elif type(value) is list and value and type(value[0]) is dict:
            rest += value
    return num_keys


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    """Called with the names and values of each object; orjson would take the last of several values."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        name = next(name for place, name in enumerate(names) if name in names[:place])
        raise RequestError(f"an object of the request names '{excerpt(name)}' twice.")


def tensor_from_bytes(raw: memoryview, shape: tuple[int, ...], tensor: TensorSignature) -> Array:
    """Reads little-endian values in row-major order; each text after its length, a number of four bytes."""
    if tensor.dtype == STRING:
        return _text_from_bytes(raw, shape, tensor.name)
    dtype = tensor.numpy_dtype
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise RequestError(f"'{tensor.name}' of shape {list(shape)} takes {expected} bytes, but {len(raw)} were sent.")
    array: Array = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise RequestError(f"'{tensor.name}' holds bytes that are neither 0 nor 1.")
    return array


def _text_from_bytes(raw: memoryview, shape: tuple[int, ...], name: str) -> Array:
    words, place = [], 0
    while place + 4 <= len(raw):
        (length,) = struct.unpack_from("<I", raw, place)
        words.append(bytes(raw[place + 4 : place + 4 + length]))
        place += 4 + length
    if place != len(raw) or len(words) != math.prod(shape):
        raise RequestError(f"the bytes of '{name}' are not {math.prod(shape)} texts, each after its length.")
    try:
        return np.array([word.decode() for word in words], dtype=object).reshape(shape)
    except UnicodeDecodeError as error:
        raise RequestError(f"'{name}' holds text that is not UTF-8.") from error


def bytes_of(array: Array) -> bytes:
    """Writes the values of an output as `tensor_from_bytes` reads them."""
    if array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    words = [str(word).encode() for word in array.ravel()]
    return b"".join(struct.pack("<I", len(word)) + word for word in words)


def tensor_from_json(data: list[Any], shape: tuple[int, ...] | None, tensor: TensorSignature, where: str) -> Array:
    """Reads a list, flat or nested as the shape, or of any shape for None; in a table null stands for NaN.

    `where` names the list in errors.
    """
    dtype = tensor.numpy_dtype
    things = "texts" if tensor.dtype == STRING else "numbers"
    try:
        given = np.asarray(data)
        if given.dtype.kind == "f" and dtype == np.uint64:  # numpy's common type of small and large whole numbers
            given = np.asarray(data, dtype=object)
    except (ValueError, OverflowError) as error:  # lists of different lengths, a number of too many digits
        raise RequestError(f"{where} is no array of {things}.") from error
    is_whole = True
    if given.dtype.kind == "O":
        if tensor.columns and all(type(value) in (int, float, type(None)) for value in given.flat):
            given = given.astype(np.float64)
        is_whole = given.dtype.kind != "O" or all(type(value) is int for value in given.flat)
    if given.size and (given.dtype.kind not in JSON_KINDS[dtype.kind] or not is_whole):
        raise RequestError(f"{where} does not hold {things} of {TYPES[tensor.dtype]} alone.")
    if shape is None:
        shape = given.shape
    if given.shape not in (shape, (math.prod(shape),)):
        raise RequestError(f"{where} has the shape {excerpt(list(given.shape))}, not {list(shape)}.")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinite values are out of range too
            return given.astype(dtype, copy=False).reshape(shape)
    if dtype.kind in "iu" and given.size:
        least, most = tensor.integer_bounds
        if not (least <= given.min() and given.max() <= most):
            raise RequestError(f"{where} holds numbers that do not fit into {TYPES[tensor.dtype]}.")
    return given.astype(dtype, copy=False).reshape(shape)


def check_range(array: Array, tensor: TensorSignature, where: str) -> None:
    """Refuses values outside the range of the tensor; NaN is one of them, but in a table it is a missing value."""
    if tensor.range is not None and not tensor.is_in_range(array):
        low, high = tensor.range
        raise RequestError(f"{where} holds values that are not within {low:g} to {high:g}.")


class Sample(NamedTuple):
    """The arrays of one sample by name, each as a batch of one; and by column the values that training did not see."""

    arrays: dict[str, Array]
    never_seen: Mapping[str, str]
    file: str = ""  # its name in a form


class Samples(NamedTuple):
    """What `/predict` was asked; the answer is a list if the request was one, or held several samples."""

    samples: list[Sample]
    is_list: bool


def samples_of_body(body: bytes, content_type: str, signature: Signature) -> Samples:
    """Reads a file, JSON, or a form with files or with the values of one row; raises `RequestError`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = _from_form(body, content_type, signature)
    # curl says that JSON is a form, unless another type is named.
    elif "json" in kind or ("csv" not in kind and body.lstrip()[:1] in (b"[", b"{")):
        found = _from_json(body, signature)
    else:
        samples = _from_file(body, signature)
        found = Samples(samples, len(samples) > 1)
    if not found.samples:
        raise RequestError("the body holds no sample.")
    return found


def _from_form(body: bytes, content_type: str, signature: Signature) -> Samples:
    fields: dict[str, str] = {}
    files: list[tuple[str, bytes]] = []

    def add_field(field: Any) -> None:
        fields[field.field_name.decode()] = (field.value or b"").decode()

    def add_file(file: Any) -> None:
        file.file_object.seek(0)
        files.append(((file.file_name or b"").decode(), file.file_object.read()))
        if len(files) > MAX_SAMPLES:
            raise too_many_samples()

    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    try:
        options = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        header = {"Content-Type": content_type.encode("latin-1")}
        parser = create_form_parser(header, add_field, add_file, options)
        parser.write(body)
        parser.finalize()
    except ValueError as error:
        raise RequestError(f"the form cannot be read: {excerpt(error)}.") from error
    if not body.rstrip().endswith(b"--" + boundary + b"--"):
        raise RequestError("the form cannot be read: it ends too early.")
    files = [(name, contents) for name, contents in files if name or contents]  # a browser sends a field without a file
    if files:
        samples = []
        for name, contents in files:
            try:
                samples += [sample._replace(file=name) for sample in _from_file(contents, signature)]
            except RequestError as error:
                raise RequestError(f"{excerpt(name)}: {error}", error.status, error.reason) from error
        return Samples(samples, len(samples) > 1)
    tensor = signature.person_input
    if tensor is None or not tensor.columns or not fields:
        raise RequestError("the form holds no file: send one, as curl -F file=@<file> does.")
    return Samples(_read("form", fields, tensor, reader_of(tensor).read_object), is_list=False)


def _from_file(body: bytes, signature: Signature) -> list[Sample]:
    if (tensor := signature.person_input) is None:
        names = ", ".join(f'"{tensor.name}"' for tensor in signature.inputs)
        raise RequestError(f"the body is no JSON: send an object with the arrays of one sample by name, {names}.")
    return _read("file", body, tensor, reader_of(tensor).read_body)


def _from_json(body: bytes, signature: Signature) -> Samples:
    """Reads an object with arrays by name, an object with a row of a table, a list of numbers, or a list of these."""
    data = parse_json(body, len(body), max(signature.max_elements or 0, MAX_NUMBERS))
    if not _is_list_of_samples(data, signature):
        return Samples(_of_value(data, signature), is_list=False)
    if len(data) > MAX_SAMPLES:
        raise too_many_samples()
    samples = []
    for number, value in enumerate(data, start=1):
        try:
            samples += _of_value(value, signature)
        except RequestError as error:
            raise RequestError(f"sample {number}: {error}", error.status, error.reason) from error
    return Samples(samples, is_list=True)


def _is_list_of_samples(data: Any, signature: Signature) -> bool:
    if not isinstance(data, list) or not data:
        return False
    if isinstance(data[0], dict):
        return True
    depth, value, num_axes = 0, data, len(signature.inputs[0].sample_shape)
    while isinstance(value, list) and value:
        depth, value = depth + 1, value[0]
    return depth == num_axes + 1 or (depth == 2 < num_axes)  # each nested as its shape, or flat


def _of_value(data: Any, signature: Signature) -> list[Sample]:
    tensor = signature.inputs[0]
    if isinstance(data, list) and len(signature.inputs) == 1:
        return [_sample({tensor.name: data}, signature, "the body")]
    if not isinstance(data, dict):
        raise RequestError("the body is no list and no object: send one sample, flat or nested, or arrays by name.")
    if tensor.columns and data.keys() != {tensor.name}:
        return _read("row", data, tensor, reader_of(tensor).read_object)
    return [_sample(data, signature, None)]


def too_many_samples() -> RequestError:
    return RequestError(f"the request holds more than {MAX_SAMPLES:,} samples: send several.", 413, "too_large")


def _sample(data: dict[str, Any], signature: Signature, where: str | None) -> Sample:
    arrays: dict[str, Array] = {}
    for tensor in signature.inputs:
        if tensor.name in data:
            owner = where or f"'{tensor.name}'"
            fixed = tuple(side for side in tensor.sample_shape if isinstance(side, int))
            shape = fixed if len(fixed) == len(tensor.sample_shape) else None
            values = data[tensor.name] if isinstance(data[tensor.name], list) else [data[tensor.name]]
            arrays[tensor.name] = tensor_from_json(values, shape, tensor, owner)[np.newaxis]
            check_range(arrays[tensor.name], tensor, owner)
    try:
        signature.bind({**arrays, **{name: np.empty(0) for name in data.keys() - arrays.keys()}})
    except ValueError as error:
        raise RequestError(f"{error}.") from error
    return Sample(arrays, {})


def excerpt(value: Any) -> str:
    """Shortens a value that a client sent, however deeply it is nested, so that it fits into a sentence."""
    text = " ".join((str(value) if isinstance(value, (str, Exception)) else reprlib.repr(value)).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def _read(
    what: str, given: Any, tensor: TensorSignature, read: Callable[[Any, TensorSignature], ReadSamples]
) -> list[Sample]:
    try:
        values, never_seen = read(given, tensor)
    except (OSError, ValueError) as error:
        raise RequestError(f"this {what} cannot be used: {reason_of(error)}.") from error
    if len(values) > MAX_SAMPLES:
        raise too_many_samples()
    return [Sample({tensor.name: values[row : row + 1]}, unknown) for row, unknown in enumerate(never_seen)]
