"""Requests to models whose raw input is other than integers from 0 to 255, as the digits are."""

import json
from typing import Any

import numpy as np
import pytest

from {{ cookiecutter.package_name }}.engine.serving import protocol
from {{ cookiecutter.package_name }}.engine.serving.payload import RequestError, bytes_of, samples_of_body
from {{ cookiecutter.package_name }}.engine.serving.protocol import InferenceRequest, ModelMetadata


def read(dtype: str, bounds: list[float], datatype: str, data: list[Any] | bytes) -> InferenceRequest:
    """Reads a request of two samples with three numbers each, as JSON or as bytes."""
    tensor = {"name": "input", "dtype": dtype, "shape": ["batch", 3], "range": bounds}
    output = {"name": "logits", "dtype": "float32", "shape": ["batch", 2]}
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
        np.testing.assert_array_equal(read("float32", [-2, 2], "FP32", data).inputs["input"], values)
    truths = read("bool", [0, 1], "BOOL", [True, False] * 3).inputs["input"]
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


MODEL = ModelMetadata(
    {
        "name": "made", "version": 1, "max_batch_size": 4,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 1]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 1]}],
    }
)  # fmt: skip
ENTRY = '"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]'


def json_of(entry: str = "", rest: str = "") -> bytes:
    """A request with one input, whose entry holds more names, and so does the request."""
    return ('{"inputs": [{' + ENTRY + entry + "}]" + rest + "}").encode()


@pytest.mark.parametrize(
    ("entry", "rest", "sentence"),
    [
        ("", ', "inputs": []', "an object of the request names 'inputs' twice."),
        (', "data": [2.0]', "", "an object of the request names 'data' twice."),
        (', "parameters": {"a": 1, "a": 2}', "", "an object of the request names 'a' twice."),
        ("", ', "output": []', "'output' of the request is not offered here: leave it out."),
        ("", ', "parameters": {"sequence_id": 7}', "'sequence_id' of the request is not offered here: leave it out."),
        (', "parameters": {"content_type": "np"}', "", "'content_type' of 'x' is not offered here"),
        (', "parameters": {"shared_memory_region": "a"}', "", "'shared_memory_region' of 'x' is not offered here"),
        ("", ', "outputs": [{"name": "y", "parameters": {"classification": 2}}]', "'classification' of 'y' is not off"),
    ],
)
def test_what_would_be_ignored_is_refused(entry: str, rest: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        protocol.read(json_of(entry, rest), None, MODEL)


@pytest.mark.parametrize("deep", ["[" * 1000 + "]" * 1000, '{"a":' * 1000 + "1" + "}" * 1000])
def test_values_within_each_other_are_refused_in_a_sentence(deep: str) -> None:
    named = '"name": "x", "datatype": "FP32", "shape": [1, 1]'
    entries = [
        '"name": %s',
        '"name": "x", "datatype": %s',
        '"name": "x", "datatype": "FP32", "shape": %s',
        named + ', "data": [%s]',
        named + ', "parameters": {"binary_data_size": %s}',
        named + ', "parameters": %s',
        named + ', "data": [1.0]}], "outputs": [{"name": %s',
    ]
    for body in ("%s", '{"id": %s}', *('{"inputs": [{' + entry + "}]}" for entry in entries)):
        with pytest.raises(RequestError):
            protocol.read((body % deep).encode(), None, MODEL)
        with pytest.raises(RequestError):
            samples_of_body((body % deep).encode(), "application/json", MODEL.signature)


def test_colons_within_text_are_no_names() -> None:
    body = json_of(rest=', "id": "a:b: c", "model_name": "made"')
    assert protocol.read(body, None, MODEL).id == "a:b: c"


def test_too_many_numbers_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(RequestError, match="more than the 12 numbers that are taken") as refused:
        read("float32", [-2, 2], "FP32", [0.0] * 5000)
    assert refused.value.status == 413


TOKENS = {"dtype": "int64", "shape": ["batch", "tokens"]}
TEXT = {
    "name": "made",
    "version": 1,
    "inputs": [{"name": "ids", **TOKENS}, {"name": "mask", **TOKENS}, {"name": "words", **TOKENS, "dtype": "string"}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
    "max_batch_size": 4,
}


def entry(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def test_several_inputs_with_free_axes_and_text_arrive_in_any_order() -> None:
    words = np.array([["a", "Köln"], ["", "c"]], dtype=object)
    raw = bytes_of(words)
    header = json.dumps(
        {
            "inputs": [
                {"name": "words", "datatype": "BYTES", "shape": [2, 2], "parameters": {"binary_data_size": len(raw)}},
                entry("mask", "INT64", [2, 2], [1, 1, 1, 0]),
                entry("ids", "INT64", [2, 2], [[5, 6], [7, 0]]),
            ]
        }
    ).encode()
    found = protocol.read(header + raw, str(len(header)), ModelMetadata(TEXT)).inputs
    assert list(found) == ["ids", "mask", "words"], "requests are compared by the shapes in this order"
    assert found["ids"].tolist() == [[5, 6], [7, 0]]
    assert found["mask"].tolist() == [[1, 1], [1, 0]]
    assert found["words"].tolist() == words.tolist()


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "'inputs' must be a list of tensors: 'ids', 'mask', 'words'"),
        ([entry("ids", "INT64", [1, 2], [1, 2])], "the input 'mask' is missing"),
        (
            [entry("ids", "INT64", [1, 2], [1, 2]), entry("mask", "INT64", [1, 3], [1, 2, 3])],
            "'mask' has 3 along its axis 'tokens', but another input has 2: they must agree",
        ),
        (
            [entry("ids", "INT64", [1, 2], [1, 2]), entry("mask", "INT64", [2, 2], [1, 2, 3, 4])],
            "'mask' has 2 along its axis 'batch', but another input has 1: they must agree",
        ),
        ([entry("ids", "INT64", [1], [1])], r"'ids' has the shape \[1\], but this model takes \[batch, tokens\]"),
        ([entry("words", "BYTES", [1, 1], [1])], "'data' of 'words' does not hold texts of BYTES alone"),
        ([entry("ids", "INT64", [1, 1], ["a"])], "'data' of 'ids' does not hold numbers of INT64 alone"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(entries: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        protocol.read(json.dumps({"inputs": entries}).encode(), None, ModelMetadata(TEXT))


def test_metadata_and_configuration_show_free_axes() -> None:
    model = ModelMetadata(TEXT)
    assert model.to_response()["inputs"][2] == {"name": "words", "datatype": "BYTES", "shape": [-1, -1]}
    assert model.to_config()["input"][2] == {"name": "words", "data_type": "TYPE_STRING", "dims": [-1]}
    whole = ModelMetadata({**TEXT, "max_batch_size": 0}).to_config()
    assert (whole["input"][0]["dims"], whole.get("dynamic_batching")) == ([-1, -1], None)
