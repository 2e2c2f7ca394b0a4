"""`verify` finds whatever is wrong with a bundle and names it; the loader needs neither torch nor lightning.

Each mutation first shows the unspoiled copy passing.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from jsonschema import Draft202012Validator

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.export.triton import CONFIG, check_config, config_text
from {{ cookiecutter.package_name }}.engine.export.verify import verify
from {{ cookiecutter.package_name }}.engine.inference.runtime import (
    Bundle,
    digest,
    find_bundle,
    read_golden,
    read_manifest,
)
from {{ cookiecutter.package_name }}.engine.inference.signature import Signature, TensorSignature

SOURCE = Path(package.__file__).parents[1]
Spoil = Callable[[Path], None]
PROVIDERS = ["CUDAExecutionProvider"]
TAKEN = "[batch, {{ "30" if cookiecutter.data_kind == "tables" else "1, 8, 8" }}]"

DIGITS = Signature(
    (TensorSignature("x", "uint8", ("batch", 1, 8, 8)),),
    (
        TensorSignature("logits", "float32", ("batch", 10)),
        TensorSignature("probabilities", "float32", ("batch", 10), labels=tuple("0123456789")),
    ),
    max_batch_size=64,
)


@pytest.fixture(scope="module")
def unspoiled(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file and what belongs to it: `verify` is quick without torch."""
    folder = tmp_path_factory.mktemp("unspoiled") / "1"
    shutil.copytree(bundle, folder)
    manifest = read_manifest(folder)
    manifest["parity"] = [entry for entry in manifest["parity"] if entry["format"] == "onnx"]
    for file in ("model.pt", "model.safetensors"):
        (folder / file).unlink()
        del manifest["files"][file]
    write(folder, manifest)
    verify(folder)
    return folder


@pytest.fixture
def copy(unspoiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unspoiled, tmp_path / "1"))


def write(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def forge(folder: Path, file: str) -> None:
    """As someone would who changes a file and writes its new hash into the manifest."""
    manifest, path = read_manifest(folder), folder / file
    manifest["files"][file] = {"sha256": digest(path), "bytes": path.stat().st_size}
    write(folder, manifest)


def spoil_model(change: Callable[[onnx.ModelProto], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        forge(folder, "model.onnx")

    return spoil


def spoil_manifest(**entries: Any) -> Spoil:
    return lambda folder: write(folder, {**read_manifest(folder), **entries})


def change_weight(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[:9] += 0.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def swap_outputs(model: onnx.ModelProto) -> None:
    first, second = (onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in model.graph.output)
    model.graph.output[0].CopyFrom(second)
    model.graph.output[1].CopyFrom(first)


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def change_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20


def add_dropout(model: onnx.ModelProto) -> None:
    """In training mode, where nothing depends on it: no answer would tell."""
    for name, value in (("ratio", np.array(0.5, np.float32)), ("train", np.array(True))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.node.append(onnx.helper.make_node("Dropout", ["logits", "ratio", "train"], ["dropped"]))


def hide_dropout(model: onnx.ModelProto) -> None:
    """In a function, which the graph does not even call."""
    nodes = [
        onnx.helper.make_node("Constant", [], ["ratio"], value_float=0.5),
        onnx.helper.make_node("Constant", [], ["train"], value=onnx.numpy_helper.from_array(np.array(True))),
        onnx.helper.make_node("Dropout", ["x", "ratio", "train"], ["y"]),
    ]
    opsets = [onnx.helper.make_opsetid("", 18)]
    model.functions.append(onnx.helper.make_function("own", "Hidden", ["x"], ["y"], nodes, opsets))
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))


def external_data(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../elsewhere.bin")


def wrong_labels(folder: Path) -> None:
    logits, probabilities = read_manifest(folder)["outputs"]
    labels = list(reversed(probabilities["labels"]))
    spoil_manifest(outputs=[logits, {**probabilities, "labels": labels}])(folder)


def wrong_range(folder: Path) -> None:
    (tensor,) = read_manifest(folder)["inputs"]
    spoil_manifest(inputs=[{**tensor, "range": [0.0, 1.0]}])(folder)


def extra_byte(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")


def symbolic_link(folder: Path) -> None:
    outside = folder.parent / "model.onnx"
    (folder / "model.onnx").rename(outside)
    (folder / "model.onnx").symlink_to(outside)


def unreadable(folder: Path) -> None:
    """The checker itself fails on the name of an operator that is no text."""
    path = folder / "model.onnx"
    operator = onnx.load(path).graph.node[0].op_type.encode()
    path.write_bytes(path.read_bytes().replace(operator, b"\xff" * len(operator)))
    forge(folder, "model.onnx")


def golden(**changed: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        inputs, outputs = read_golden(folder)
        arrays = {**inputs, **outputs}
        np.savez(folder / "golden.npz", **{name: changed.get(name, lambda a: a)(a) for name, a in arrays.items()})
        forge(folder, "golden.npz")

    return spoil


def no_archive(folder: Path) -> None:
    (folder / "golden.npz").write_bytes(b"PK\x03\x04 and no more")
    forge(folder, "golden.npz")


def escape(folder: Path) -> None:
    manifest = read_manifest(folder)
    manifest["files"]["../model.onnx"] = manifest["files"]["model.onnx"]
    write(folder, manifest)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_model(change_weight), "model.onnx differs from the trained model"),
        (spoil_model(swap_outputs), "model.onnx has the outputs probabilities, logits"),
        (spoil_model(fix_batch), "model.onnx takes batches of 2 only"),
        (spoil_model(change_opset), "model.onnx has opset 20"),
        (spoil_model(add_dropout), "model.onnx was exported in training mode"),
        (spoil_model(hide_dropout), "model.onnx was exported in training mode"),
        (unreadable, "model.onnx cannot be read"),
        (spoil_model(external_data), "model.onnx keeps the tensor"),
        (wrong_labels, "model.onnx says of itself outputs="),
        (wrong_range, "model.onnx says of itself inputs="),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
        (extra_byte, "model.onnx in .* was changed after its export"),
        (symbolic_link, "model.onnx in .* is no plain file"),
        (lambda folder: (folder / "notes.txt").write_text("hello"), "notes.txt in .* is not listed"),
        (lambda folder: (folder / "golden.npz").write_bytes(b"PK"), "golden.npz in .* was changed"),
        (golden(logits=lambda logits: logits + 1), "model.onnx differs from the trained model"),
        (golden(logits=lambda logits: logits.astype(str)), "golden.npz in .* holds 'logits' as <U"),
        (golden(logits=lambda logits: logits[:3]), r"golden.npz in .* holds 'logits' as float32 \(3, \d+\)"),
        (golden(x=lambda inputs: inputs[:0]), "golden.npz in .* holds 'x' as "),
        (no_archive, "golden.npz in .* cannot be read: BadZipFile"),
        (spoil_manifest(schema_version=1), "was written by version 0.9 of the template, which was never released"),
        (spoil_manifest(schema_version=3), r"schema version 3, this project reads 2\): update the project"),
        (spoil_manifest(opset="18"), r"manifest.json of .* does not fit its schema: \$.opset"),
        (spoil_manifest(outputs=[]), r"manifest.json of .* does not fit its schema: \$.outputs"),
        (spoil_manifest(parity=[]), r"manifest.json of .* does not fit its schema: \$.parity"),
        (spoil_manifest(files=[]), "manifest.json of .* cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "manifest.json of .* cannot be read"),
        (escape, "lists ../model.onnx, which is no plain file name"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json of .* cannot be read"),
    ],
)
def test_spoiled_bundle_is_refused_and_the_file_named(copy: Path, spoil: Spoil, sentence: str) -> None:
    spoil(copy)
    with pytest.raises(UserError, match=sentence) as refused:
        verify(copy)
    assert refused.value.exit_code == 1


def test_manifest_fits_its_schema_and_the_schema_is_one(bundle: Path) -> None:
    path = Path(package.__file__).parent / "engine/export/manifest.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(read_manifest(bundle))


def test_code_is_run_only_with_trust(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        verify(bundle)
    assert "not run     model.pt, which is code: add trust=true" in caplog.messages
    assert any(line.startswith("agrees      model.safetensors") for line in caplog.messages)
    with caplog.at_level("INFO"):
        verify(bundle, trust=True)
    assert any(line.startswith("agrees      model.pt:") for line in caplog.messages)


def test_loader_predicts_without_torch(bundle: Path) -> None:
    code = (
        "import sys, numpy\n"
        f"from {package.__name__}.engine.inference.runtime import Bundle\n"
        "bundle = Bundle(sys.argv[1])\n"
        "found = bundle.predict({'x': numpy.load(sys.argv[1] + '/golden.npz')['x']})\n"
        "print(*(prediction['label'] for prediction in found))\n"
        "assert not sys.modules.keys() & {'torch', 'lightning', 'onnx', 'hydra'}, 'more than numpy and ONNX Runtime'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, outputs = read_golden(bundle)
    labels = read_manifest(bundle)["outputs"][1]["labels"]
    assert done.stdout.split() == [labels[number] for number in outputs["logits"].argmax(axis=1)]


def test_loader_leaves_nothing_and_says_nothing_to_others(bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's telemetry starts with an identifier on the disk, unless a CI service is recognised."""
    told = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "TF_BUILD", "CIRCLECI")
    environment = {name: value for name, value in os.environ.items() if name not in told}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(SOURCE)}
    for loaded, left in ((f"{package.__name__}.engine.inference.runtime", []), ("onnxruntime", [".ses"])):
        subprocess.run([sys.executable, "-c", f"import {loaded}"], env=environment, check=True)
        assert [path.name for path in tmp_path.iterdir() if path.name == ".ses"] == left


def test_loader_gives_the_golden_answers_and_splits_large_batches(bundle: Path) -> None:
    loaded = Bundle(bundle, num_threads=1)
    inputs, outputs = read_golden(bundle)
    found = loaded(inputs)
    np.testing.assert_allclose(found["logits"], outputs["logits"], atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], outputs["probabilities"], atol=1e-5)
    many = loaded.predict({"x": np.concatenate([inputs["x"]] * 20)})  # 160, more than the largest batch
    assert len(many) == 20 * len(inputs["x"])
    labels, chosen = loaded.signature.outputs[1].labels, outputs["probabilities"].argmax(axis=1)
    assert [prediction["label"] for prediction in many[-len(chosen) :]] == [labels[number] for number in chosen]


def test_loader_refuses_what_does_not_fit(bundle: Path, copy: Path) -> None:
    loaded = Bundle(bundle)
    inputs = read_golden(bundle)[0]["x"]
    for wrong, sentence in (
        ({"x": inputs[0]}, f"but this model takes {TAKEN}"),
        ({"x": inputs.astype(np.float64)}, "'x' is float64, but this model takes "),
        ({"x": inputs[:0]}, "a batch of 0 is out of range: this model takes 1 to 64"),
        ({"x": inputs, "y": inputs}, "the input 'y' is not known: this model takes x"),
        ({}, "the input 'x' is missing: this model takes x"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            loaded(wrong)
    with pytest.raises(UserError, match=r"providers=\[NoSuchProvider\] is not available here"):
        Bundle(bundle, providers=["NoSuchProvider"])
    with pytest.raises(UserError, match=r"model.int8.onnx is no ONNX file of .*, which has: model.onnx"):
        Bundle(bundle, file="model.int8.onnx")
    manifest = read_manifest(copy)
    for entries in ({"inputs": []}, {"outputs": None}):
        spoil_manifest(**entries)(copy)
        with pytest.raises(UserError, match=r"manifest.json of .* describes no model"):
            Bundle(copy)
        write(copy, manifest)
    extra_byte(copy)
    with pytest.raises(UserError, match=r"model.onnx in .* was changed after its export"):
        Bundle(copy)


def test_provider_that_does_not_start_is_no_silent_fall_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself warns and computes on the CPU; that it offers the provider is a stand-in for a bad driver."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*PROVIDERS, "CPUExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(UserError, match=r"providers=\[CUDAExecutionProvider\] cannot be started here"),
    ):
        Bundle(bundle, providers=[*PROVIDERS, "CPUExecutionProvider"])


def test_bundle_is_verified_without_torch_but_for_the_formats_that_need_it(bundle: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"  # as where it is not installed
        f"sys.argv.insert(1, 'verify'); from {package.__name__}.engine.commands import main; main(())"
    )
    command = [sys.executable, "-c", code, f"bundle={bundle}", "trust=true", f"hydra.run.dir={bundle.parents[1]}/run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "agrees      model.onnx: " in done.stdout
    for file in ("model.pt", "model.safetensors"):
        assert f"not run     {file}, which needs torch" in done.stdout


def test_bundle_is_found_by_version_name_and_latest(bundle: Path, tmp_path: Path) -> None:
    for number, created in (("1", "02"), ("2", "03"), ("10", "01")):
        folder = Path(shutil.copytree(bundle, tmp_path / "digits" / number))
        write(folder, {**read_manifest(folder), "created": f"2026-01-{created}T00:00:00+00:00"})
    assert find_bundle(str(tmp_path / "digits/2"), tmp_path).name == "2"
    assert find_bundle(str(tmp_path / "digits"), tmp_path).name == "10"
    (tmp_path / "digits/99").touch()  # no version, for all its name
    assert find_bundle(str(tmp_path / "digits"), tmp_path).name == "10"
    (tmp_path / "digits/1/manifest.json").touch()  # as `benchmark` does
    assert find_bundle("latest", tmp_path).name == "2"
    with pytest.raises(UserError, match="bundle=latest finds none"):
        find_bundle("latest", tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        find_bundle("nowhere", tmp_path)


def parsed_by_triton(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gRPC, which NVIDIA's package brings
        from tritonclient.grpc import model_config_pb2
    from google.protobuf import text_format

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_triton_reads_the_configuration_and_it_agrees_with_the_file(bundle: Path) -> None:
    config = parsed_by_triton((bundle.parent / CONFIG).read_text(encoding="utf-8"))
    model = onnx.load(bundle / "model.onnx")
    assert (config.name, config.backend, config.max_batch_size) == (package.__name__, "onnxruntime", 64)
    numbers = {"TYPE_UINT8": onnx.TensorProto.UINT8, "TYPE_FP32": onnx.TensorProto.FLOAT}
    types = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    for standing, values in ((config.input, model.graph.input), (config.output, model.graph.output)):
        assert [tensor.name for tensor in standing] == [value.name for value in values]
        for tensor, value in zip(standing, values, strict=True):
            given = value.type.tensor_type
            assert list(tensor.dims) == [side.dim_value for side in given.shape.dim[1:]]
            assert numbers[types[tensor.data_type].name] == given.elem_type
    assert config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"logits"', '"scores"', 'has no { name: "logits", data_type: TYPE_FP32'),
        ("TYPE_UINT8", "TYPE_FP32", 'has no { name: "x", data_type: TYPE_UINT8'),
        ("[ 1, 8, 8 ]", "[ 3, 8, 8 ]", r"dims: \[ 1, 8, 8 \] }, which this model has: give another export.name= than"),
        ("max_batch_size: 64", "max_batch_size: 128", "lets batches of 128 through"),
    ],
)
def test_standing_configuration_that_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path, text = tmp_path / CONFIG, config_text("made", DIGITS)
    path.write_text(text, encoding="utf-8")
    check_config(path, DIGITS)
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        check_config(path, DIGITS)


def test_what_was_added_to_the_configuration_by_hand_is_kept_and_read(tmp_path: Path) -> None:
    added = "instance_group [ { kind: KIND_GPU, count: 2 } ]\n"
    added += 'parameters { key: "#a" value: { string_value: "\\"{" } }\n'
    text = config_text("made", DIGITS).replace("dims: [ 10 ]", "dims: [10]", 1) + added
    assert parsed_by_triton(text).instance_group[0].count == 2
    (tmp_path / CONFIG).write_text(text, encoding="utf-8")
    check_config(tmp_path / CONFIG, DIGITS)
