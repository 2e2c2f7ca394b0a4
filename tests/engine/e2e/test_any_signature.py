"""Models of any signature are served: cases of `onnx.backend.test` for each datatype, rank and number of inputs."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from bundles import write_bundle
from onnx.backend.test.loader import load_model_tests
from server import NAME, serving
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

Case = Any
Arrays = dict[str, npt.NDArray[Any]]

DATATYPES = {
    "bool": "BOOL",
    **{f"{kind}int{bits}": f"{kind.upper()}INT{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    "string": "BYTES",
}


def tensors_of(values: Any) -> list[dict[str, Any]]:
    """Returns the entries of a manifest; raises `KeyError` for what no tensor of the protocol is."""
    entries = []
    for value in values:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            raise KeyError(value.name)
        is_text = kind.elem_type == onnx.TensorProto.STRING
        dtype = "string" if is_text else onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
        entries.append({"name": value.name, "dtype": dtype, "shape": shape, "datatype": DATATYPES[dtype]})
    return entries


def features_of(inputs: list[dict[str, Any]]) -> set[Any]:
    return {*((tensor["datatype"], "type") for tensor in inputs), *((len(t["shape"]), "rank") for t in inputs)} | {
        (len(inputs), "inputs")
    }


def chosen_cases() -> Iterator[tuple[str, Case]]:
    """Yields cases until each datatype, rank and number of inputs that ONNX Runtime passes was among them."""
    seen: set[Any] = set()
    onnxruntime.set_default_logger_severity(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow on purpose
        cases = load_model_tests(kind="node")
    for case in cases:
        model = case.model or onnx.load(Path(case.model_dir) / "model.onnx")
        try:
            inputs, _ = tensors_of(model.graph.input), tensors_of(model.graph.output)
        except (KeyError, TypeError, ValueError):
            continue
        if not inputs or not features_of(inputs) - seen or not case.data_sets or not passes(model, case):
            continue
        seen |= features_of(inputs)
        yield case.name, case


def data_of(model: onnx.ModelProto, case: Case) -> tuple[Arrays, Arrays]:
    inputs, outputs = case.data_sets[0]
    return tuple(  # type: ignore[return-value]
        {value.name: np.asarray(array) for value, array in zip(values, arrays, strict=True)}
        for values, arrays in ((model.graph.input, inputs), (model.graph.output, outputs))
    )


def passes(model: onnx.ModelProto, case: Case) -> bool:
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        given, expected = data_of(model, case)
        found = session.run(list(expected), given)
        for array, right in zip(found, expected.values(), strict=True):
            assert_same(array, right)
    except Exception:  # what ONNX Runtime does not take, it refuses in many ways
        return False
    return True


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert found.shape == expected.shape
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_each_datatype_rank_and_number_of_inputs_is_served(tmp_path: Path) -> None:
    features: set[Any] = set()
    for name, case in chosen_cases():
        model = case.model or onnx.load(Path(case.model_dir) / "model.onnx")
        given, expected = data_of(model, case)
        inputs, outputs = tensors_of(model.graph.input), tensors_of(model.graph.output)
        taken, returned = (
            [{key: tensor[key] for key in ("name", "dtype", "shape")} for tensor in kind] for kind in (inputs, outputs)
        )
        bundle = write_bundle(tmp_path / name / NAME / "1", model, taken, returned, {**given, **expected})
        features |= features_of(inputs)
        with serving(bundle) as server:
            client = InferenceServerClient(f"127.0.0.1:{server.port}")
            for binary in (True, False):
                if not binary and any(array.dtype == np.float16 for array in (*given.values(), *expected.values())):
                    continue  # NVIDIA's client has no such numbers in JSON
                asked = []
                for tensor in inputs:
                    array = given[tensor["name"]]
                    asked.append(InferInput(tensor["name"], list(array.shape), tensor["datatype"]))
                    asked[-1].set_data_from_numpy(array, binary_data=binary)
                wanted = [InferRequestedOutput(output, binary_data=binary) for output in expected]
                found = client.infer(NAME, asked, outputs=wanted)
                for output, right in expected.items():
                    array = found.as_numpy(output)
                    if array.dtype == object:
                        array = np.array([word.decode() if isinstance(word, bytes) else word for word in array.ravel()])
                        array = array.reshape(right.shape)
                    if binary or np.isfinite(right.astype(float) if right.dtype.kind == "f" else 0).all():
                        assert_same(array, right)
            client.close()
    assert {datatype for datatype, kind in features if kind == "type"} == {*DATATYPES.values()}
    assert {rank for rank, kind in features if kind == "rank"} >= {0, 1, 2, 3, 4, 5, 6}
    assert {number for number, kind in features if kind == "inputs"} >= {1, 2, 3, 4, 5, 6}
