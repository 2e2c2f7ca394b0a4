"""LightningModules and DataModules of an owner's: the pages of docs/stories, and Lightning's own boring classes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
{% if cookiecutter.serving %}
import warnings
{% endif %}
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
{% if cookiecutter.serving %}
import onnxruntime
{% endif %}
import pytest
import torch
from conftest import run_command, weights
{% if cookiecutter.serving %}
from server import NAME, serving
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype
{% endif %}

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.export.contract import GateFailure
from {{ cookiecutter.package_name }}.engine.export.verify import verify
from {{ cookiecutter.package_name }}.engine.inference.runtime import digest{{ ", first_samples, read_golden" if cookiecutter.serving }}, read_manifest
{% if cookiecutter.serving %}
from {{ cookiecutter.package_name }}.engine.inference.signature import Signature
{% endif %}

PROJECT = Path(package.__file__).parents[2]
STORIES = sorted((Path(__file__).parents[1] / "stories").glob("*.md"))
FIRST = ("text",)  # what the others have not: parts of different length
MAX_LINES = 120  # of Python
BORING = "lightning.pytorch.demos.boring_classes"
EXACT = ("trainer=cpu", "trainer.precision=64-true", "trainer.max_epochs=2", "callbacks.early_stopping=null")
Train = Callable[..., Path]


def copied(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".*", "logs", "artifacts", "build", "engine_tests", "__pycache__")
    return Path(shutil.copytree(PROJECT, folder / "project", ignore=ignored))


def blocks(story: Path, language: str) -> list[str]:
    text = story.read_text(encoding="utf-8").replace("<package>", package.__name__)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(story, id=story.stem, marks=[] if story.stem in FIRST else pytest.mark.slow) for story in STORIES
    ],
)
def story(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def project(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of the page."""
    project = copied(tmp_path_factory.mktemp(story.stem))
    for block in (*blocks(story, "python"), *blocks(story, "yaml")):
        first, _, rest = block.partition("\n")
        (project / first.removeprefix("# ")).write_text(rest, encoding="utf-8")
    return project


@pytest.fixture
def train(story: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains the story's model in double precision, in a folder of its own; returns the run directory."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(project / "src"), str(Path(__file__).parents[1])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chosen = re.findall(r"(?:data|model)=\w+", blocks(story, "bash")[0])[:2]

    def run(name: str, *options: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        given = options if "resume=latest" in options else (*chosen, *EXACT, *options)
        run_command("train", *given, cwd=tmp_path / name)
        (run_dir,) = (tmp_path / name).glob("logs/train/runs/*")
        return run_dir

    return run


def test_code_is_short_and_clean(story: Path, project: Path) -> None:
    lines = [line for block in blocks(story, "python") for line in block.splitlines() if line.strip()]
    assert len(lines) <= MAX_LINES
    for tool in (["ruff", "check", "src"], ["ruff", "format", "--check", "src"]):
        command = [sys.executable, "-m", *tool]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def assert_same(found: Path, expected: Path, tolerance: float = 1e-10) -> None:
    for name, weight in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], weight, rtol=0, atol=tolerance)
    figures, right = (json.loads((run_dir / "metrics.json").read_bytes()) for run_dir in (found, expected))
    assert figures == pytest.approx(right, abs=1e-6)  # metrics count in single precision
    assert right or "boring" in str(expected), "only the boring classes log nothing"


@pytest.mark.parametrize("num_processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_change_nothing(train: Train, num_processes: int) -> None:
    """Three divide neither the batch nor the data."""
    assert_same(train("ddp", "strategy=ddp", f"trainer.devices={num_processes}"), train("single"))


@pytest.mark.slow
def test_run_that_is_killed_comes_to_the_same_end(train: Train, tmp_path: Path) -> None:
    expected = train("undisturbed", "strategy=ddp", "trainer.devices=2")
    killer = {"_target_": "killer.Killer", "rank": 1, "notes": tmp_path / "notes", "step": 5, "delay": 0.01}
    options = [f"+callbacks.killer.{name}={value}" for name, value in killer.items()]
    with pytest.raises(AssertionError):
        train("killed", "strategy=ddp", "trainer.devices=2", "callbacks.last.every_n_steps=2", *options)
    run_dir = train("killed", "resume=latest", "callbacks.killer=null")
    assert_same(run_dir, expected, tolerance=0)


@pytest.mark.slow
def test_commands_of_the_page(story: Path, project: Path) -> None:
    """Also under torchrun, on two processes."""
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    (block,) = blocks(story, "bash")
    torchrun = next(line for line in block.splitlines() if "strategy=ddp" in line)
    torchrun = torchrun.replace("python -m", "torchrun --nproc-per-node=2 -m").replace(" trainer.devices=2", "")
    done = subprocess.run(
        ["bash", "-ec", block + torchrun], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(project.glob("logs/train/runs/*/curves.png"))) == 3
    assert len(list(project.glob("logs/evaluate/runs/*/metrics.json"))) == 1


@pytest.mark.slow
def test_habits_of_another_template_work(tmp_path: Path) -> None:
    """A module and a DataModule as they are in lightning-hydra-template, an experiment as there, and their commands."""
    project, page = copied(tmp_path), Path(__file__).parents[1] / "from-lightning-hydra-template.md"
    (module,) = (story for story in STORIES if story.stem == "existing-module")
    for block in (*blocks(module, "python"), *blocks(module, "yaml"), *blocks(page, "yaml")):
        first, _, rest = block.partition("\n")
        (project / first.removeprefix("# ")).write_text(rest, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    command = ["bash", "-ec", blocks(page, "bash")[0]]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    single, ddp = sorted(project.glob("logs/train/runs/*"))
    assert_same(ddp, single, tolerance=1e-4)  # in float32, as the page has it
    options = (single / ".hydra/config.yaml").read_text(encoding="utf-8")
    assert all(option in options for option in ("seed: 12345", "max_epochs: 3", "lr: 0.002", "batch_size: 32"))
    assert len(list(project.glob("logs/train/multiruns/*/*/checkpoints/best.ckpt"))) == 2
    assert len(list(project.glob("artifacts/*/1/model.onnx"))) == 1


@pytest.fixture(scope="module")
def exported(story: Path, project: Path) -> Path:
    """The bundle that the page's own command makes, in all formats that it names."""
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    lines = blocks(story, "bash")[0].splitlines()
    for line in (f"{lines[0]} trainer=cpu trainer.max_epochs=2 rehearse_export=require", lines[-1]):
        command = ["bash", "-ec", line]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        said = "test_step of LitModule never calls forward" in done.stdout  # before the training too
        assert said == (story.stem == "existing-module"), done.stdout
    (bundle,) = project.glob("artifacts/*/1")
    return bundle


def test_story_is_exported_with_its_metrics_and_a_changed_file_is_refused(
    story: Path, exported: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(exported)
    formats = re.search(r"formats=\[(.*)\]", blocks(story, "bash")[0])
    assert formats is not None
    assert [parity["format"] for parity in manifest["parity"]] == formats[1].split(",")
    for parity in manifest["parity"]:
        if manifest["metrics_not_verified"] is None:
            allowed = 0.005 if "_" in parity["format"] else 1e-5
            assert parity["metrics"] == pytest.approx(manifest["metrics"], abs=allowed)
    verify(exported, trust=True)
    copy = Path(shutil.copytree(exported, tmp_path / "1"))
    model = onnx.load(copy / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(tensor) + np.float32(0.1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    path = copy / "model.onnx"
    path.write_bytes(model.SerializeToString())
    manifest["files"]["model.onnx"] = {"sha256": digest(path), "bytes": path.stat().st_size}
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(GateFailure, match=r"model.onnx differs from the trained model"):
        verify(copy)


{% if cookiecutter.serving %}
def test_story_is_served_as_its_file_answers(exported: Path, project: Path) -> None:
    inputs, _ = read_golden(exported)
    signature = Signature.of_manifest(read_manifest(exported))
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in signature.outputs]
    with serving(exported, PYTHONPATH=str(project / "src")) as server:
        client = InferenceServerClient(f"127.0.0.1:{server.port}")
        for size in (1, len(inputs[signature.inputs[0].name])):
            given = first_samples(inputs, size)
            expected = dict(zip(names, session.run(names, given), strict=True))
            for binary in (True, False):
                asked = []
                for name, array in given.items():
                    asked.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
                    asked[-1].set_data_from_numpy(array, binary_data=binary)
                outputs = [InferRequestedOutput(name, binary_data=binary) for name in names]
                found = client.infer(NAME, asked, outputs=outputs)
                for name, right in expected.items():
                    np.testing.assert_array_equal(found.as_numpy(name), right)
        client.close()
        sample = {name: array[0].tolist() for name, array in inputs.items()}
        status, _, answer = server.ask("POST", "/predict", json.dumps(sample).encode(), Content_Type="application/json")
        assert status == 200, answer
        if free := [name for name, array in inputs.items() if "tokens" in str(signature.inputs[0].shape)]:
            long = {name: [1] * 100 for name in free}  # more words than the network has places for
            refused, sentence = server.error("POST", "/predict", json.dumps(long).encode())
            assert (refused, sentence[:49]) == (400, "the model cannot compute inputs of these sizes: ["), sentence
            uneven = {"input_ids": [1] * 5, "attention_mask": [1] * 4}
            assert server.error("POST", "/predict", json.dumps(uneven).encode()) == (
                400,
                "'attention_mask' has 4 along its axis 'tokens', but another input has 5: they must agree.",
            )
        described = json.loads(server.ask("GET", "/predict")[2])
        assert server.ask("GET", "/")[0] == 200
    assert described["inputs"] == [f"{tensor.name}: {tensor}" for tensor in signature.inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gRPC, which NVIDIA's package brings
        from tritonclient.grpc import model_config_pb2
    from google.protobuf import text_format

    text = (exported.parent / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    for tensors, found in ((signature.inputs, config.input), (signature.outputs, config.output)):
        dims = [[side if isinstance(side, int) else -1 for side in tensor.sample_shape] for tensor in tensors]
        assert [(tensor.name, list(tensor.dims)) for tensor in found] == [
            (tensor.name, sides) for tensor, sides in zip(tensors, dims, strict=True)
        ]


{% endif %}
@pytest.mark.slow
def test_shipped_tests_hold_for_a_project_of_the_story(story: Path, project: Path) -> None:
    """And for the defaults that its owner has changed."""
    train = project / "src" / package.__name__ / "configs/train.yaml"
    text = train.read_text(encoding="utf-8")
    for group, choice in re.findall(r"(data|model)=(\w+)", blocks(story, "bash")[0].splitlines()[0]):
        text = re.sub(rf"- {group}: \w+", f"- {group}: {choice}", text)
    train.write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "tests"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def boring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose only own files are options that name Lightning's classes."""
    project = copied(tmp_path_factory.mktemp("boring"))
    options = project / "src" / package.__name__ / "configs"
    for group, name, kind in (
        ("data", "boring", "BoringDataModule"),
        ("model", "boring", "BoringModel"),
        ("model", "manual", "ManualOptimBoringModel"),
    ):
        (options / group / f"{name}.yaml").write_text(f"_target_: {BORING}.{kind}\n", encoding="utf-8")
    return project


@pytest.mark.slow
@pytest.mark.parametrize("model", ["boring", "manual"])
def test_boring_classes_train_test_and_resume(
    model: str, boring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(boring / "src"), str(Path(__file__).parents[1])]))
    runs = {}
    for name, options in (("single", ()), ("boring ddp", ("strategy=ddp", "trainer.devices=2"))):
        folder = tmp_path / name
        folder.mkdir()
        run_command("train", f"model={model}", "data=boring", *EXACT, *options, cwd=folder)
        (runs[name],) = folder.glob("logs/train/runs/*")
    assert_same(runs["boring ddp"], runs["single"])
    killer = {"_target_": "killer.Killer", "rank": 0, "notes": tmp_path / "notes", "step": 70}
    options = [f"+callbacks.killer.{name}={value}" for name, value in killer.items()]
    (tmp_path / "boring killed").mkdir()
    kept = "callbacks.last.every_n_steps=10"
    command = ["train", f"model={model}", "data=boring", kept, *EXACT, *options]
    assert run_command(*command, cwd=tmp_path / "boring killed", check=False).returncode == -signal.SIGKILL
    run_command("train", "resume=latest", "callbacks.killer=null", cwd=tmp_path / "boring killed")
    (run_dir,) = (tmp_path / "boring killed").glob("logs/train/runs/*")
    assert_same(run_dir, runs["single"], tolerance=0)
    done = run_command("evaluate", cwd=tmp_path / "boring killed")
    assert "run " in done.stdout
