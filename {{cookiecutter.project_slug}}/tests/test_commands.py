"""The commands as a user runs them, one after the other, and what they leave behind."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import PACKAGE, Workplace


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(scope="module")
def run_dir(workplace: Workplace, needed: dict[str, list[str]]) -> Path:
    return workplace.train(needed)


@pytest.fixture(scope="module")
def bundle(workplace: Workplace, run_dir: Path) -> Path:
    workplace.run("export", f"ckpt_path={run_dir / 'checkpoints/best.ckpt'}", "formats=[onnx,torchscript]")
    return workplace.artifact_dir / PACKAGE / "1"


def read_figures(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))


def test_training_writes_checkpoints_and_figures(run_dir: Path) -> None:
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert {"metrics.csv", "report.md", "train.log", "run.json"} <= {path.name for path in run_dir.iterdir()}
    assert any(name.startswith("test/") for name in read_figures(run_dir))


def test_checkpoint_loads_as_plain_data(run_dir: Path) -> None:
    """Under `weights_only`, which runs no code of the file."""
    checkpoint = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(isinstance(weight, torch.Tensor) for weight in checkpoint["state_dict"].values())


def test_evaluate_repeats_the_figures_of_the_training(workplace: Workplace, run_dir: Path) -> None:
    workplace.run("evaluate", "trainer=cpu", "trainer.limit_test_batches=2")
    (evaluation,) = workplace.run_dirs("evaluate")
    trained = read_figures(run_dir)
    expected = {name: value for name, value in trained.items() if name.startswith("test/")}
    assert read_figures(evaluation) == pytest.approx(expected, rel=1e-5)


def test_exported_files_answer_alike(bundle: Path) -> None:
    """ONNX Runtime and TorchScript, as of the versions that are installed, on samples of the test split."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(bundle / "golden.npz") as golden:
        inputs = {value.name: golden[value.name] for value in session.get_inputs()}
        expected = [golden[value.name] for value in session.get_outputs()]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of TorchScript as a whole
        script = torch.jit.load(bundle / "model.pt")
        scripted = script(*(torch.from_numpy(values) for values in inputs.values()))
    for onnx_output, script_output, values in zip(session.run(None, inputs), scripted, expected, strict=True):
        np.testing.assert_allclose(onnx_output, values, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(script_output.numpy(), values, rtol=1e-4, atol=1e-4)


def test_bundle_is_verified(workplace: Workplace, bundle: Path) -> None:
    assert "verified" in workplace.run("verify", f"bundle={bundle}").stdout


@pytest.mark.parametrize("source", ["checkpoint", "bundle"])
def test_predict_answers_for_each_sample(workplace: Workplace, bundle: Path, source: str, tmp_path: Path) -> None:
    with np.load(bundle / "golden.npz") as golden:
        samples = golden[onnxruntime.InferenceSession(bundle / "model.onnx").get_inputs()[0].name]
    np.save(tmp_path / "samples.npy", samples)
    model = [f"bundle={bundle}"] if source == "bundle" else []
    output = tmp_path / "predictions.csv"
    workplace.run("predict", f"input={tmp_path / 'samples.npy'}", f"output={output}", "device=cpu", *model)
    with output.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(samples)
