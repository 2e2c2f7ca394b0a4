"""From digits to pictures of one's own: the commands of the README, after what they started from is gone."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_command, weights
from safetensors.torch import load_file

from {{ cookiecutter.package_name }}.engine.training import checkpoints, fine_tuning


def rates(run_dir: Path) -> list[tuple[float, float]]:
    """Of the pretrained and the new weights, epoch by epoch."""
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lr-AdamW/pretrained"]]
    return [(float(row["lr-AdamW/pretrained"]), float(row["lr-AdamW/new"])) for row in rows]


def test_network_learns_other_labels_and_is_whole_without_the_first_run(
    best_checkpoint: Path, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(shutil.copy(best_checkpoint, tmp_path / "first.ckpt"))
    taken = torch.load(first, weights_only=True)["state_dict"]
    data = ("data=image_folder", f"data.root={picture_folder}", "data.channels=1", "data.size=[8,8]")
    small = ("data.batch_size=16", "data.num_workers=0", "trainer=cpu")
    tuned = ("weights=first.ckpt", "pretrained_lr_factor=0.1", "model.class_weights=balanced")
    command = ("train", *data, *small, *tuned, "freeze=[net.1.features.0.*,net.1.features.1.*]")
    with monkeypatch.context() as named:
        named.setenv("TRAIN_RUN_NAME", "tuned")
        printed = run_command(*command, "trainer.max_epochs=2", cwd=tmp_path).stdout
        assert "starts from first.ckpt: 11 tensors taken, 2 start anew" in printed
        assert "training    58,627 of 58,979 weights" in printed
        assert "learning rate 0.0002 (pretrained), 0.002 (new)" in printed
        first.unlink()
        printed = run_command(*command, "trainer.max_epochs=3", cwd=tmp_path).stdout
    assert "goes on     from" in printed, "the same command, as a job that is started again"
    run_dir = tmp_path / "logs/train/runs/tuned"
    assert rates(run_dir) == [pytest.approx((rate / 10, rate)) for rate in (0.002, 0.0018, 0.00162)]
    own = weights(run_dir)
    assert torch.equal(own["net.1.features.0.weight"], taken["net.1.features.0.weight"])
    assert not torch.equal(own["net.1.features.3.weight"], taken["net.1.features.3.weight"])

    figures = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    assert all(name.split("/")[0] in ("train", "val", "test") for name in figures)
    checkpoint = f"ckpt_path={run_dir / 'checkpoints/best.ckpt'}"
    run_command("evaluate", checkpoint, "paths.log_dir=again", cwd=tmp_path)
    (again,) = tmp_path.glob("again/evaluate/runs/*/metrics.json")
    evaluated = json.loads(again.read_text(encoding="utf-8"))
    assert evaluated["test/acc"] == figures["test/acc"] > 0.9
    assert evaluated["test/loss"] == pytest.approx(figures["test/loss"], rel=1e-5), "weighted in both"
    run_command("export", checkpoint, "formats=[onnx,safetensors]", cwd=tmp_path)
    (manifest,) = tmp_path.glob("artifacts/*/1/manifest.json")
    bundled = manifest.with_name("model.safetensors")
    exported = load_file(bundled)
    best = checkpoints.load(run_dir / "checkpoints/best.ckpt")
    names, _ = fine_tuning.transfer(fine_tuning.read_weights(bundled), best.model(), best.config["model"], best.spec)
    assert len(names) == 11, "a bundle tells its labels: all of it can be trained on"
    written = json.loads(manifest.read_text(encoding="utf-8"))["inputs"][0]
    assert written["mean"] == pytest.approx(exported["net.0.mean"].flatten().tolist())
    assert torch.equal(exported["net.0.mean"], taken["net.0.mean"]), "what the kept weights have learned with"
