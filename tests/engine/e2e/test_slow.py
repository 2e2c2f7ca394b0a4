"""Each case on its own, in minutes: run inside a generated project by `make test-all`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import EXACT, TWO_PROCESSES, assert_same_result, curves, run_command, trained, weights
from test_faults import assert_goes_on, folder, undisturbed
from test_ranks import assert_trains_compressed

__all__ = ["folder", "undisturbed"]  # fixtures

STRATEGIES = {"single": (), "dp": ("strategy=dp",), "ddp": TWO_PROCESSES}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("single"), *EXACT)


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("data.micro_batch_size=32", False),
        ("trainer.gradient_clip_val=0.1", True),
        ("data.max_shift=1", True),
        ("data.batch_size=90", True),  # leaves a remainder of 87 samples
    ],
)
def test_strategies_agree_with_each_option(option: str, changes: bool, single: Path, tmp_path: Path) -> None:
    found = {}
    for name, strategy in STRATEGIES.items():
        (tmp_path / name).mkdir()
        found[name] = trained(tmp_path / name, *EXACT, *strategy, option)
    for name in ("dp", "ddp"):
        assert_same_result(found[name], found["single"])
    assert (curves(found["single"]) != pytest.approx(curves(single), abs=1e-10)) == changes


@pytest.mark.parametrize(
    "network",
    [("model=mlp",), ("model.optimizer._target_=torch.optim.SGD", "model.optimizer.lr=0.05")],
    ids=["mlp", "cnn"],
)
def test_single_precision_drifts_no_further_than_rounding(network: tuple[str, ...], tmp_path: Path) -> None:
    """AdamW divides a gradient by its size, and with it the rounding: on the CNN SGD takes its place.

    Without dropout, because rounding decides a near tie of the CNN's pooling, and with it the CNN meets one early.
    """
    each_epoch = (
        "+callbacks.each={_target_: lightning.pytorch.callbacks.ModelCheckpoint, save_top_k: -1, monitor: val/loss}"
    )
    places = "++callbacks.each.dirpath=$" + "{paths.output_dir}/checkpoints"
    options = ("trainer=cpu", "trainer.max_epochs=3", "model.net.dropout=0", each_epoch, places)
    options = (*options, "++callbacks.each.filename='{epoch}'", "callbacks.best=null", *network)
    found = {}
    for name, strategy in STRATEGIES.items():
        (tmp_path / name).mkdir()
        found[name] = trained(tmp_path / name, *options, *strategy)
    for name in ("dp", "ddp"):
        first, expected = weights(found[name], "epoch=0"), weights(found["single"], "epoch=0")
        assert max((first[key] - expected[key]).abs().max().item() for key in first) <= 1e-5
        metrics = [json.loads((found[key] / "metrics.json").read_text(encoding="utf-8")) for key in (name, "single")]
        assert abs(metrics[0]["test/acc"] - metrics[1]["test/acc"]) <= 2 / 360 + 1e-9


def test_compiled_network_trains_the_same_and_keeps_its_names(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("not run: torch.compile needs a C++ compiler on the CPU (package g++)")
    states = {}
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        folder.mkdir()
        options = (
            "trainer=cpu",
            "trainer.max_epochs=2",
            "model=mlp",
            "model.net.dropout=0",
            f"compile={compiled}",
        )
        run_command("train", *options, cwd=folder)
        (path,) = folder.glob("logs/train/runs/*/checkpoints/last.ckpt")
        states[compiled] = torch.load(path, weights_only=True)["state_dict"]
        run_command("export", "formats=onnx", cwd=folder)
    assert list(states["true"]) == list(states["false"])
    for name in states["true"]:
        torch.testing.assert_close(states["true"][name], states["false"][name], rtol=0, atol=1e-3)


@pytest.mark.parametrize("moment", ["0 5", "1 0", "1 18", "2 7", "3 2"])
def test_restarted_run_ends_with_the_weights_of_an_undisturbed_one(
    moment: str, folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_goes_on(moment, folder, undisturbed, monkeypatch)


def test_gradients_in_half_precision_train(tmp_path: Path) -> None:
    assert_trains_compressed("fp16", tmp_path)
