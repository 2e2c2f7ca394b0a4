"""The commands as a user runs them, one after the other."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import HANGS, Keys, run_command

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.export.torchscript import IGNORED_WARNINGS
from {{ cookiecutter.package_name }}.engine.training import checkpoints
from {{ cookiecutter.package_name }}.engine.warning_filters import warnings_ignored

PNG = b"\x89PNG"


def epochs(printed: str) -> list[str]:
    return [line.split("  ")[0] for line in printed.splitlines() if line.startswith("epoch")]


def read_json(path: Path) -> dict[str, float]:
    contents: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return contents


@pytest.fixture(scope="module")
def labels(best_checkpoint: Path) -> list[str]:
    return list(checkpoints.load(best_checkpoint).spec.labels)


def test_run_directory_is_complete(run_dir: Path) -> None:
    found = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    hydra = {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"}
    written = {"metrics.csv", "metrics.json", "hparams.yaml", "train.log", "run.json", "report.md"}
    pictures = {"curves.png", "confusion_matrix.png"}
    saved = {f"checkpoints/{name}.ckpt{end}" for name in ("best", "last", "previous") for end in ("", ".sha256")}
    assert found == hydra | written | pictures | saved
    assert (run_dir / "curves.png").read_bytes().startswith(PNG)
    metrics = read_json(run_dir / "metrics.json")
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "test/acc", "test/f1"} <= metrics.keys()
    assert metrics["test/acc"] > 0.9


def test_training_prints_plain_lines_in_a_pipe_and_what_to_do_next(tmp_path: Path) -> None:
    printed = run_command("train", "trainer=cpu", "trainer.max_epochs=2", cwd=tmp_path).stdout
    assert "batch 64 = 1 device x 64" in printed
    assert epochs(printed) == ["epoch 1/2", "epoch 2/2"]
    record = json.loads(next(tmp_path.glob("logs/train/runs/*/run.json")).read_text(encoding="utf-8"))
    counted = record["data"]["splits"]
    assert re.search(rf"samples +{counted['train']:,} +{counted['val']:,} +{counted['test']:,}", printed)
    assert re.search(r"epoch 2 +epoch 2 +best, epoch [12]", printed)
    assert f"| samples | {' | '.join(map(str, counted.values()))} |" in report_of(tmp_path)
    assert "\r" not in printed
    assert "\x1b" not in printed
    assert f"python -m {package.__name__} export ckpt_path=logs/train/runs/" in printed


def report_of(folder: Path) -> str:
    return next(folder.glob("logs/train/runs/*/report.md")).read_text(encoding="utf-8")


def test_training_goes_on_from_a_checkpoint(tmp_path: Path, run_dir: Path) -> None:
    options = ("trainer=cpu", f"ckpt_path={run_dir / 'checkpoints/last.ckpt'}", "trainer.max_epochs=3")
    assert epochs(run_command("train", *options, cwd=tmp_path).stdout) == ["epoch 3/3"]
    (gone_on,) = tmp_path.glob("logs/train/runs/*/checkpoints/last.ckpt")
    before, after = (
        torch.load(path, weights_only=True)["state_dict"] for path in (run_dir / "checkpoints/last.ckpt", gone_on)
    )
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


@pytest.mark.parametrize(
    "option", ["debug=fdr", *(pytest.param(f"debug={name}", marks=pytest.mark.slow) for name in ("limit", "overfit"))]
)
def test_debug_options_run_in_a_place_of_their_own(option: str, tmp_path: Path) -> None:
    run_command("train", option, "trainer=cpu", "trainer.max_epochs=2", cwd=tmp_path)
    (debug_dir,) = (tmp_path / "logs/debug/runs").iterdir()
    assert debug_dir.is_dir()
    assert not (tmp_path / "logs/train").exists(), "a debug run would be taken as the latest run"


def test_profiler_leaves_a_table_and_a_trace(tmp_path: Path) -> None:
    process = run_command("train", "debug=profiler", "trainer=cpu", cwd=tmp_path)
    assert "Warning" not in process.stderr  # torch itself prints when it starts and stops
    (debug_dir,) = (tmp_path / "logs/debug/runs").iterdir()
    assert "run_training_batch" in (debug_dir / "fit-profile.txt").read_text(encoding="utf-8")
    events = json.loads((debug_dir / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert any(event["name"].endswith(".training_step") for event in events)
    place = f"{debug_dir.relative_to(tmp_path)}/trace.json"
    assert f"open {place} at https://ui.perfetto.dev" in process.stdout


def test_runs_that_start_in_the_same_second_have_their_own_directories(tmp_path: Path) -> None:
    options = ["trainer=cpu", "debug=fdr", "hydra.run.dir=$" + "{claim:same}"]
    command = [sys.executable, "-m", package.__name__, "train", *options]
    together = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=HANGS) for process in together] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same", "same-2"]


def test_evaluate_takes_the_latest_run_and_says_which(workplace: Path, run_dir: Path) -> None:
    printed = run_command("evaluate", "trainer=cpu", cwd=workplace).stdout
    assert f"{run_dir.name}/checkpoints/best.ckpt (the latest run)" in printed
    evaluation = max((workplace / "logs/evaluate/runs").iterdir())  # another test may have left some
    trained = read_json(run_dir / "metrics.json")
    expected = {name: value for name, value in trained.items() if name.startswith("test/")}
    assert read_json(evaluation / "metrics.json") == expected
    assert (evaluation / "confusion_matrix.png").read_bytes().startswith(PNG)
    assert (evaluation / "mistakes.{{ "csv" if cookiecutter.data_kind == "tables" else "png" }}").read_bytes().startswith({{ 'b"kind,"' if cookiecutter.data_kind == "tables" else "PNG" }})
    assert "confused    " in printed
    confused = [line for line in printed.splitlines() if line.startswith("confused")]
    for strategy in ("ddp", "fsdp"):
        options = (f"strategy={strategy}", "trainer.devices=2", f"hydra.run.dir={workplace / strategy}")
        again = run_command("evaluate", "trainer=cpu", *options, cwd=workplace).stdout
        assert [line for line in again.splitlines() if line.startswith("confused")] == confused
        assert (workplace / strategy / "labels.csv").read_bytes() == (evaluation / "labels.csv").read_bytes()


def test_evaluate_and_signed_export_need_only_the_checkpoint_from_anywhere(
    best_checkpoint: Path, keys: Keys, tmp_path: Path
) -> None:
    run_command("evaluate", f"ckpt_path={best_checkpoint}", "trainer=cpu", cwd=tmp_path)
    sign = f"export.sign={keys.private}"
    printed = run_command("export", f"ckpt_path={best_checkpoint}", "formats=onnx", sign, cwd=tmp_path).stdout
    assert printed.endswith(f"verify bundle=artifacts/{package.__name__}/1 key=<public key>\n")
    files = {path.name for path in (tmp_path / "artifacts" / package.__name__ / "1").iterdir()}
    described = {"manifest.json", "manifest.sig", "golden.npz", "README.md", "confusion_matrix.png"}
    assert files == {"model.onnx", *described}
    verified = run_command("verify", f"key={keys.public}", cwd=tmp_path).stdout
    assert f"signature   of the manifest was made with the private key of {keys.public}" in verified
    assert "signature   not checked: add key=<public key>" in run_command("verify", cwd=tmp_path).stdout
    refused = run_command("benchmark", "bundle=latest", cwd=tmp_path, check=False)
    assert refused.stderr.endswith("is signed, and gets the figures: add sign=<private key> to sign it again.\n")


def test_bundle_is_complete_and_describes_itself(bundle: Path, run_dir: Path, labels: list[str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    files = {path.name for path in bundle.iterdir()}
    written = {"model.onnx", "model.pt", "model.safetensors"}
    assert files == written | {"manifest.json", "golden.npz", "README.md", "confusion_matrix.png"}
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert (manifest["name"], manifest["version"], manifest["outputs"][1]["labels"]) == (package.__name__, 1, labels)
    assert manifest["metrics"]["test/acc"] == pytest.approx(read_json(run_dir / "metrics.json")["test/acc"], abs=1e-7)
    assert all(parity["largest_difference"] <= 1e-5 for parity in manifest["parity"])
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert all(f"`{file}`" in card for file in written)
    assert "](confusion_matrix.png)" in card
    assert (bundle / "confusion_matrix.png").read_bytes().startswith(PNG)


def test_golden_samples_are_answered_by_both_files(bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as golden:
        inputs, logits = golden["x"], golden["logits"]
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["logits"], {"x": inputs})[0], logits, atol=1e-4)
    with warnings_ignored(*IGNORED_WARNINGS):
        module = torch.jit.load(bundle / "model.pt")
    np.testing.assert_allclose(module(torch.from_numpy(inputs))[0].numpy(), logits, atol=1e-4)


def test_files_carry_their_own_description(bundle: Path, labels: list[str]) -> None:
    model = onnx.load(bundle / "model.onnx")
    summary = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(summary["outputs"])[1]["labels"] == labels
    extra = {"summary.json": ""}
    with warnings_ignored(*IGNORED_WARNINGS):
        torch.jit.load(bundle / "model.pt", _extra_files=extra)
    assert json.loads(extra["summary.json"]) == summary


SPOILED_EXPORT = """
import math
import onnx
import PACKAGE.engine.export.onnx as exporter
from PACKAGE.export import main

original = exporter.export

def spoiled(source):
    model = onnx.load_from_string(original(source))
    tensor = max(model.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[:9] += 0.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()

exporter.export = spoiled
main()
"""


@pytest.mark.slow
def test_spoiled_weight_publishes_nothing_and_leaves_earlier_versions(bundle: Path, best_checkpoint: Path) -> None:
    name_dir, folder = bundle.parent, bundle.parents[2]
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    code = SPOILED_EXPORT.replace("PACKAGE", package.__name__)
    command = [sys.executable, "-c", code, f"ckpt_path={best_checkpoint}"]
    spoiled = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert spoiled.returncode == 1, spoiled.stderr
    assert "error: model.onnx differs from the trained model" in spoiled.stderr
    assert "1 of 3 formats failed, so nothing was published; export.partial=true publishes" in spoiled.stderr
    assert "verifying   model.pt" in spoiled.stdout, "one that fails does not hide the others"
    assert "Traceback" not in spoiled.stderr
    assert sorted(path.name for path in name_dir.iterdir()) == ["1", "config.pbtxt"]
    assert {path: path.read_bytes() for path in bundle.iterdir()} == before
    run_command("export", f"ckpt_path={best_checkpoint}", "formats=onnx", cwd=folder)
    assert sorted(path.name for path in name_dir.iterdir()) == ["1", "2", "config.pbtxt"]
    partial = [*command, "export.partial=true", "export.name=others"]
    others = subprocess.run(partial, cwd=folder, capture_output=True, text=True, check=False)
    assert others.returncode == 0, others.stderr
    assert "left out    model.onnx differs from the trained model" in others.stdout + others.stderr
    (version,) = (folder / "artifacts/others").iterdir()
    assert {path.name for path in version.glob("model*")} == {"model.pt", "model.safetensors"}
    run_command("verify", f"bundle={version}", "trust=true", cwd=folder)


def test_wheel_trains_from_an_empty_folder(tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, project], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r});"
        f"import {package.__name__}.train as train; assert {str(tmp_path)!r} in train.__file__; train.main()"
    )
    subprocess.run([sys.executable, "-c", code, "trainer=cpu", "trainer.max_epochs=1"], cwd=empty, check=True)
    assert len(list(empty.glob("logs/train/runs/*/checkpoints/best.ckpt"))) == 1
