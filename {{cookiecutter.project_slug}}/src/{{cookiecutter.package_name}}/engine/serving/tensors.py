"""Tensors as clients send them: as JSON, and as raw bytes."""

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..inference.datatypes import TYPES

Array = npt.NDArray[Any]

KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}  # by the kind of a tensor, what JSON may hold for it


class Rejected(Exception):
    """Why a request is not answered: one sentence for the client, an HTTP status, and a word for the metrics."""

    def __init__(self, sentence: str, status: int = 400, reason: str = "malformed") -> None:
        super().__init__(sentence)
        self.status, self.reason = status, reason


def from_bytes(raw: memoryview, size: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> Array:
    """Little-endian, row by row; `size` is what the client says that it sends."""
    expected = math.prod(shape) * dtype.itemsize
    if type(size) is not int or size != expected or len(raw) != expected:
        raise Rejected(
            f"'{name}' of shape {list(shape)} takes {expected} bytes, but binary_data_size={shown(size)} "
            f"and {len(raw)} bytes follow the JSON."
        )
    array: Array = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)
    if dtype.kind == "b" and array.view(np.uint8).max() > 1:
        raise Rejected(f"'{name}' holds bytes that are neither 0 nor 1.")
    return array


def from_json(data: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any], where: str, gaps: bool = False) -> Array:
    """Flat, or nested as the shape says; `where` the list stood. With `gaps`, null stands for NaN."""
    try:
        given = np.asarray(data)
    except (ValueError, OverflowError) as error:  # lists of different lengths, a number of too many digits
        raise Rejected(f"{where} is no array of numbers.") from error
    if gaps and given.dtype == object and all(type(value) in (int, float, type(None)) for value in given.flat):
        given = given.astype(np.float64)
    if given.dtype.kind not in KINDS[dtype.kind]:
        raise Rejected(f"{where} does not hold numbers of {TYPES[dtype.name]} alone.")
    if given.shape not in (shape, (math.prod(shape),)):
        raise Rejected(f"{where} has the shape {shown(list(given.shape))}, not {list(shape)}.")
    if dtype.kind in "iu" and not is_within(given, *_bounds(dtype)):
        raise Rejected(f"{where} holds numbers that do not fit into {TYPES[dtype.name]}.")
    with np.errstate(over="ignore"):  # infinite is out of range too
        array: Array = given.astype(dtype, copy=False).reshape(shape)
    return array


def check_range(array: Array, low: float, high: float, where: str, gaps: bool = False) -> None:
    """With `gaps`, a NaN is no value."""
    if gaps and np.isnan(array).any():
        array = array[~np.isnan(array)]
    if array.size and not is_within(array, low, high):
        raise Rejected(f"{where} holds values that are not within {low:g} to {high:g}.")


def is_within(array: Array, low: float, high: float) -> bool:
    """Of a NaN, neither bound holds."""
    if array.dtype.kind == "u":
        least, most = _bounds(array.dtype)
        if low <= least and most <= high:
            return True
    return bool(low <= array.min() and array.max() <= high)


@cache
def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Of whole numbers."""
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def shown(value: Any) -> str:
    """As much of what a client sent as fits into a sentence."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
