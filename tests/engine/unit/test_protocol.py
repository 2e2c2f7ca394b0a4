"""Requests to models whose raw input is other than integers from 0 to 255, as the digits are."""

import json
from typing import Any

import numpy as np
import pytest

from {{ cookiecutter.package_name }}.engine.serving import protocol
from {{ cookiecutter.package_name }}.engine.serving.payload import RequestError
from {{ cookiecutter.package_name }}.engine.serving.protocol import InferenceRequest, ModelMetadata


def read(dtype: str, bounds: list[float], datatype: str, data: list[Any] | bytes) -> InferenceRequest:
    """Reads a request of two samples with three numbers each, as JSON or as bytes."""
    tensor = {"name": "input", "dtype": dtype, "shape": [-1, 3], "range": bounds}
    output = {"name": "logits", "dtype": "float32", "shape": [-1, 2]}
    manifest = {"name": "made", "version": 1, "inputs": [tensor], "outputs": [output], "max_batch_size": 4}
    model = ModelMetadata(manifest)
    entry: dict[str, Any] = {"name": "input", "datatype": datatype, "shape": [2, 3]}
    if isinstance(data, bytes):
        header = json.dumps({"inputs": [{**entry, "parameters": {"binary_data_size": len(data)}}]}).encode()
        return protocol.read(header + data, str(len(header)), model)
    return protocol.read(json.dumps({"inputs": [{**entry, "data": data}]}).encode(), None, model)


def test_numbers_arrive_as_they_were_sent() -> None:
    values = np.array([[-1.5, 0, 1], [2, 0.25, 1e-3]], np.float32)
    for data in (values.tolist(), values.ravel().tolist(), values.tobytes()):
        np.testing.assert_array_equal(read("float32", [-2, 2], "FP32", data).inputs, values)
    truths = read("bool", [0, 1], "BOOL", [True, False] * 3).inputs
    assert truths.tolist() == [[True, False, True], [False, True, False]]


@pytest.mark.parametrize(
    ("dtype", "bounds", "datatype", "data", "sentence"),
    [
        ("float32", [-2, 2], "FP32", [0, 0, 0, 0, 0, 2.5], "'input' holds values that are not within -2 to 2"),
        ("float32", [-2, 2], "FP32", [0, 0, 0, 0, 0, 1e300], "'input' holds values that are not within -2 to 2"),
        ("float32", [-2, 2], "FP32", np.full(6, np.nan, np.float32).tobytes(), "not within -2 to 2"),
        ("int16", [-5, 5], "INT16", [0, 0, 0, 0, 0, -6], "not within -5 to 5"),
        ("int16", [-5, 5], "INT16", [0, 0, 0, 0, 0, 2**20], "holds numbers that do not fit into INT16"),
        ("uint8", [0, 9], "UINT8", [0, 0, 0, 0, 0, 10], "not within 0 to 9"),
        ("bool", [0, 1], "BOOL", [0, 1, 0, 1, 0, 1], "does not hold numbers of BOOL alone"),
        ("bool", [0, 1], "BOOL", bytes([0, 1, 2, 0, 0, 0]), "holds bytes that are neither 0 nor 1"),
    ],
)
def test_value_out_of_range_is_refused(
    dtype: str, bounds: list[float], datatype: str, data: list[Any] | bytes, sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        read(dtype, bounds, datatype, data)


def test_too_many_numbers_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(RequestError, match="more than the 12 numbers that are taken") as refused:
        read("float32", [-2, 2], "FP32", [0.0] * 5000)
    assert refused.value.status == 413
