"""The data in requests: tensors as JSON or raw bytes, and single samples as files or JSON."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from ..inference.input_schema import TYPES, InputSchema
from ..inference.inputs import reason_of

Array = npt.NDArray[Any]

JSON_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}  # kinds of JSON values by the kind of the tensor
COMMAS_BESIDE_DATA = 4096  # between names, shapes and parameters


class RequestError(Exception):
    """A request that is refused: one sentence for the client, the HTTP status, and the reason in the metrics."""

    def __init__(self, sentence: str, status: int = 400, reason: str = "malformed") -> None:
        super().__init__(sentence)
        self.status, self.reason = status, reason


def parse_json(body: bytes, size: int, max_elements: int) -> Any:
    """Parses the first `size` bytes, unless they hold so many numbers that these would fill the memory."""
    if body.count(b",", 0, size) > max_elements + COMMAS_BESIDE_DATA:
        sentence = f"the request holds more than the {max_elements:,} numbers that are taken."
        raise RequestError(sentence, 413, "too_large")
    try:
        return orjson.loads(memoryview(body)[:size])
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is no JSON: {error}.") from error


def tensor_from_bytes(raw: memoryview, size: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> Array:
    """Reads little-endian values in row-major order; `size` is the number of bytes that the client declared."""
    expected = math.prod(shape) * dtype.itemsize
    if type(size) is not int or size != expected or len(raw) != expected:
        raise RequestError(
            f"'{name}' of shape {list(shape)} takes {expected} bytes, but binary_data_size={excerpt(size)} "
            f"and {len(raw)} bytes follow the JSON."
        )
    array: Array = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)
    if dtype.kind == "b" and array.view(np.uint8).max() > 1:
        raise RequestError(f"'{name}' holds bytes that are neither 0 nor 1.")
    return array


def tensor_from_json(data: list[Any], shape: tuple[int, ...], schema: InputSchema, where: str) -> Array:
    """Reads a list, flat or nested as the shape; `where` names it in errors. In a table null stands for NaN."""
    dtype = schema.dtype
    try:
        given = np.asarray(data)
    except (ValueError, OverflowError) as error:  # lists of different lengths, a number of too many digits
        raise RequestError(f"{where} is no array of numbers.") from error
    if (
        schema.columns
        and given.dtype == object
        and all(type(value) in (int, float, type(None)) for value in given.flat)
    ):
        given = given.astype(np.float64)
    if given.dtype.kind not in JSON_KINDS[dtype.kind]:
        raise RequestError(f"{where} does not hold numbers of {TYPES[dtype.name]} alone.")
    if given.shape not in (shape, (math.prod(shape),)):
        raise RequestError(f"{where} has the shape {excerpt(list(given.shape))}, not {list(shape)}.")
    least, most = schema.integer_bounds
    if dtype.kind in "iu" and not (least <= given.min() and given.max() <= most):
        raise RequestError(f"{where} holds numbers that do not fit into {TYPES[dtype.name]}.")
    with np.errstate(over="ignore"):  # infinite values are out of range too
        array: Array = given.astype(dtype, copy=False).reshape(shape)
    return array


def check_range(array: Array, schema: InputSchema, where: str) -> None:
    """Refuses values outside the range of the schema; NaN is one of them, but in a table it is a missing value."""
    if not schema.is_in_range(array):
        low, high = schema.range
        raise RequestError(f"{where} holds values that are not within {low:g} to {high:g}.")


def sample_from_file(body: bytes, schema: InputSchema) -> Array:
    """Reads the contents of a file with one sample as `(1, *schema.shape)`."""
    return _read(body, schema, schema.reader.read_body)


def sample_from_json(body: bytes, schema: InputSchema) -> Array:
    """Reads a list of numbers, flat or nested, or an object with a row of a table as `(1, *schema.shape)`."""
    data = parse_json(body, len(body), math.prod(schema.shape))
    if isinstance(data, dict):
        return _read(data, schema, schema.reader.read_object)
    if not isinstance(data, list):
        raise RequestError("the body is no list: send one sample, flat or nested.")
    sample = tensor_from_json(data, schema.shape, schema, "the body")
    check_range(sample, schema, "the body")
    return sample[np.newaxis]


def excerpt(value: Any) -> str:
    """Shortens a value that a client sent, so that it fits into a sentence."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def _read(given: Any, schema: InputSchema, read: Callable[[Any, InputSchema], Array]) -> Array:
    try:
        return read(given, schema)
    except (OSError, ValueError) as error:
        raise RequestError(f"the body cannot be used: {reason_of(error)}.") from error
