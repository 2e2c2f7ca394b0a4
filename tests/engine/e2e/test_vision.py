"""Torchvision's data and timm's networks, from files that are written here to predictions by the exported bundle."""

import csv
from pathlib import Path

import pytest
import timm
import torch
from downloads import NUM_TEST, digits, write_mnist
from PIL import Image
from safetensors.torch import save_file

from conftest import EXACT, TWO_PROCESSES, assert_same_result, run_command, trained

FORMATS = (("onnx", "torchscript", "safetensors"), ("torch_export", "onnx_int8", "onnx_fp16"))
NUM_SAMPLES = 1797  # all digits that scikit-learn has


def write_weights(folder: Path, name: str) -> Path:
    save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of MNIST in `files`."""
    folder = tmp_path_factory.mktemp("vision")
    write_mnist(folder / "files", NUM_SAMPLES)
    return folder


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> Path:
    """Of two epochs that began with a file of weights, which is gone by now."""
    weights = write_weights(place, "test_resnet")
    options = ("data=torchvision", "data.root=files", "data.batch_size=32", "trainer=cpu", "trainer.max_epochs=2")
    net = ("model=timm", "model.net.name=test_resnet", f"model.net.weights={weights.name}", "model.optimizer.lr=0.01")
    run_dir = trained(place, *options, *net)
    weights.unlink()
    return run_dir / "checkpoints/best.ckpt"


def test_checkpoint_needs_neither_network_nor_file_of_weights(checkpoint: Path, tmp_path: Path) -> None:
    assert "test/acc" in run_command("evaluate", f"ckpt_path={checkpoint}", "trainer=cpu", cwd=tmp_path).stdout


@pytest.mark.parametrize("formats", FORMATS, ids="-".join)
def test_every_format_passes_the_gate(formats: tuple[str, ...], checkpoint: Path, tmp_path: Path) -> None:
    """A sample of the hundred is as much as the formats of lower precision may lose by default."""
    options = (f"formats=[{','.join(formats)}]", "export.max_metric_loss=0.05", "export.name=mnist")
    run_command("export", f"ckpt_path={checkpoint}", *options, cwd=tmp_path)
    assert "verified" in run_command("verify", "trust=true", cwd=tmp_path).stdout


def test_bundle_predicts_pictures(checkpoint: Path, tmp_path: Path) -> None:
    pictures, labels = digits(NUM_SAMPLES, 28)
    for number, picture in enumerate(pictures[-NUM_TEST:]):
        Image.fromarray(picture).save(tmp_path / f"{number:02}.png")
    run_command("export", f"ckpt_path={checkpoint}", "formats=[onnx]", cwd=tmp_path)
    found = []
    for options in (["bundle=latest"], [f"ckpt_path={checkpoint}"]):
        run_command("predict", "input='*.png'", *options, "output=found.csv", cwd=tmp_path)
        with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
            found.append([int(row["label"].split(" - ")[0]) for row in csv.DictReader(file)])
    assert found[0] == found[1]
    assert sum(label == truth for label, truth in zip(found[0], labels[-NUM_TEST:], strict=True)) > 70


def test_strategies_agree_on_downloaded_pictures_that_are_changed(tmp_path: Path) -> None:
    write_mnist(tmp_path / "files")
    options = ("data=torchvision", f"data.root={tmp_path / 'files'}", "data.num_workers=1", "model=mlp", *EXACT)
    runs = {name: tmp_path / name for name in ("single", "ddp")}
    for run in runs.values():
        run.mkdir()
    single = trained(runs["single"], *options)
    assert_same_result(trained(runs["ddp"], *options, *TWO_PROCESSES), single)


def test_strategies_agree_on_a_transformer_and_ones_own_pictures(picture_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = write_weights(tmp_path, "test_vit")
    options = ("data=image_folder", f"data.root={picture_folder}", "data.size=[32,32]", "data.batch_size=16", *EXACT)
    net = ("model=timm", "model.net.name=test_vit", f"model.net.weights={weights}")
    runs = {name: tmp_path / name for name in ("single", "ddp")}
    for run in runs.values():
        run.mkdir()
    single = trained(runs["single"], *options, *net, "data.num_workers=0")
    assert_same_result(trained(runs["ddp"], *options, *net, *TWO_PROCESSES, "data.num_workers=0"), single)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["model=timm", "model.net.name=resnet81"], "model.net.name=resnet81 is no network of timm; did you mean"),
        (["model=timm", "model.net.weights=nowhere.pth"], "model.net.weights=nowhere.pth does not exist"),
        (["data=torchvision", "data.name=cifar"], "data.name=cifar does not fit: it takes mnist or fashion_mnist or"),
        (["data=torchvision", "data.download=false"], "does not hold all files of data.name=mnist: give"),
    ],
)
def test_mistake_gets_one_sentence(options: list[str], sentence: str, tmp_path: Path) -> None:
    refused = run_command("train", "trainer=cpu", *options, cwd=tmp_path, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert sentence in refused.stderr
    assert not (tmp_path / ".cache").exists()
    assert not list(tmp_path.glob("logs/train/runs/*"))
