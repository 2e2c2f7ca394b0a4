"""The commands as a user runs them, one after the other, and what they leave behind."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import Workplace


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(scope="module")
def run_dir(workplace: Workplace, needed: dict[str, list[str]]) -> Path:
    return workplace.train(needed, "test=true")


@pytest.fixture(scope="module")
def bundle(workplace: Workplace, run_dir: Path) -> Path:
    done = workplace.run("export", "formats=[onnx,torchscript]", check=False)
    if "DataSpec" in done.stderr:
        pytest.skip(f"not run: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = workplace.artifact_dir.glob("*/1")
    return folder


def test_training_leaves_checkpoints_that_load_as_plain_data(run_dir: Path) -> None:
    """Under `weights_only`, which runs no code of the file."""
    assert {"metrics.csv", "metrics.json", "report.md", "train.log"} <= {path.name for path in run_dir.iterdir()}
    checkpoints = sorted((run_dir / "checkpoints").glob("*.ckpt"))
    assert run_dir / "checkpoints/last.ckpt" in checkpoints
    for path in checkpoints:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(isinstance(weight, torch.Tensor) for weight in state.values())


def test_evaluate_repeats_the_figures_of_the_training(workplace: Workplace, run_dir: Path) -> None:
    workplace.run("evaluate", "trainer=cpu", "trainer.limit_test_batches=2")
    (evaluation,) = workplace.run_dirs("evaluate")
    evaluated, trained = (json.loads((path / "metrics.json").read_text()) for path in (evaluation, run_dir))
    assert evaluated == pytest.approx({name: trained[name] for name in evaluated}, rel=1e-5)


def test_exported_files_answer_alike(bundle: Path) -> None:
    """ONNX Runtime and TorchScript, as of the versions that are installed, on samples of the test split."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(bundle / "golden.npz") as golden:
        inputs = {value.name: golden[value.name] for value in session.get_inputs()}
        expected = [golden[value.name] for value in session.get_outputs()]
    with warnings.catch_warnings(action="ignore"):  # torch 2.13 and 2.14 deprecate TorchScript in two ways
        script = torch.jit.load(bundle / "model.pt")
        scripted = script(*(torch.from_numpy(values) for values in inputs.values()))
    for onnx_output, script_output, values in zip(session.run(None, inputs), scripted, expected, strict=True):
        np.testing.assert_allclose(onnx_output, values, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(script_output.numpy(), values, rtol=1e-4, atol=1e-4)


def test_bundle_is_verified(workplace: Workplace, bundle: Path) -> None:
    assert "verified" in workplace.run("verify", f"bundle={bundle}").stdout


@pytest.mark.parametrize("source", ["checkpoint", "bundle"])
def test_predict_answers_for_each_sample(workplace: Workplace, bundle: Path, source: str, tmp_path: Path) -> None:
    names = [value.name for value in onnxruntime.InferenceSession(bundle / "model.onnx").get_inputs()]
    with np.load(bundle / "golden.npz") as golden:
        samples = {name: golden[name] for name in names}
    np.savez(tmp_path / "samples.npz", **samples)
    model = [f"bundle={bundle}"] if source == "bundle" else []
    output = tmp_path / "predictions.csv"
    workplace.run("predict", f"input={tmp_path / 'samples.npz'}", f"output={output}", "device=cpu", *model)
    with output.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(samples[names[0]])
