"""What people send to `/predict`, as one sample of raw input `(1, *accepted.shape)`; raises `Rejected` for others."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..inference.input_schema import InputSchema
from ..inference.inputs import reason_of
from . import protocol, tensors
from .tensors import Array, Rejected


def from_file(body: bytes, accepted: InputSchema) -> Array:
    """The contents of a file with one sample."""
    return _read(body, accepted, accepted.reader.read_body)


def from_json(body: bytes, accepted: InputSchema) -> Array:
    """A list of numbers, flat or nested, or an object that describes a sample."""
    data = protocol.parse(body, len(body), math.prod(accepted.shape))
    if isinstance(data, dict):
        return _read(data, accepted, accepted.reader.read_object)
    if not isinstance(data, list):
        raise Rejected("the body is no list: send one sample, flat or nested.")
    gaps = bool(accepted.columns)
    sample = tensors.from_json(data, accepted.shape, accepted.dtype, "the body", gaps)
    tensors.check_range(sample, *accepted.range, "the body", gaps)
    return sample[np.newaxis]


def _read(given: Any, accepted: InputSchema, read: Callable[[Any, InputSchema], Array]) -> Array:
    try:
        return read(given, accepted)
    except (OSError, ValueError) as error:
        raise Rejected(f"the body cannot be used: {reason_of(error)}.") from error
