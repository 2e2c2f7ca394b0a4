"""Whatever ends a run that did its steps: it has its last and a best checkpoint, and it can be used and continued."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_command
from e2e.test_matrix import HERE, difference

LAST = "checkpoints/last.ckpt"
ENDINGS: dict[str, list[str]] = {
    "max_steps": ["trainer.max_steps=5"],
    "steps_of_an_epoch": ["trainer.max_steps=20"],
    "max_time": ["+trainer.max_time={seconds: 1}", "trainer.max_epochs=1000", "data.micro_batch_size=16"],
    "no_validation": ["trainer.limit_val_batches=0"],
    "late_validation": ["trainer.check_val_every_n_epoch=9"],
    "part_of_an_epoch": ["trainer.limit_train_batches=0.3"],
    "twice_an_epoch": ["+trainer.val_check_interval=0.5"],
    "with_a_validation": ["+trainer.val_check_interval=0.5", "trainer.max_steps=10"],  # of 20 in an epoch
    "min_epochs": ["+trainer.min_epochs=2", "callbacks.early_stopping.patience=1"],
    "another_figure": ["callbacks.early_stopping.monitor=val/nothing", "trainer.check_val_every_n_epoch=2"],
}


def train(folder: Path, *runs: list[Any]) -> str:
    """Several runs in one process; returns what it printed."""
    command = [sys.executable, str(HERE / "matrix.py"), str(folder), json.dumps([["mlp", *run] for run in runs])]
    ended = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-5000:]
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("endings")
    printed = train(folder, ["whole", []], *([name, options] for name, options in ENDINGS.items()))
    assert printed.count("nothing was validated, so ") == 3, printed
    return folder / "mlp"


@pytest.mark.parametrize("name", ENDINGS)
def test_run_has_both_checkpoints_and_the_figures_of_its_test(name: str, ended: Path) -> None:
    assert (ended / name / LAST).is_file()
    assert "test/acc" in json.loads((ended / name / "metrics.json").read_text(encoding="utf-8"))
    best = torch.load(ended / name / "checkpoints/best.ckpt", weights_only=True)
    if name in ("max_steps", "no_validation", "late_validation"):
        last = torch.load(ended / name / LAST, weights_only=True)["state_dict"]
        assert all(torch.equal(weight, last[key]) for key, weight in best["state_dict"].items())


def test_run_that_ended_within_an_epoch_goes_on_to_the_same_end(ended: Path) -> None:
    """That of the time is ended between two optimiser steps, though it had micro-batches."""
    time = torch.load(ended / "max_time" / LAST, weights_only=True)["global_step"]
    stopped = [f"ckpt_path={ended / 'max_time' / LAST}", "data.micro_batch_size=16", "trainer.max_epochs=1000"]
    train(
        ended.parent,
        ["continued", [f"ckpt_path={ended / 'max_steps' / LAST}"]],
        ["second_epoch", [f"ckpt_path={ended / 'steps_of_an_epoch' / LAST}", "trainer.max_steps=40"]],
        ["validated", ["+trainer.val_check_interval=0.5", f"ckpt_path={ended / 'with_a_validation' / LAST}"]],
        ["later", [*stopped, f"trainer.max_steps={time + 30}"]],
        ["at_once", ["trainer.max_epochs=1000", f"trainer.max_steps={time + 30}"]],
    )
    assert difference(ended / "continued", ended / "whole") == 0
    assert difference(ended / "second_epoch", ended / "whole") == 0
    assert difference(ended / "validated", ended / "twice_an_epoch") == 0
    assert difference(ended / "later", ended / "at_once") < 1e-10


@pytest.mark.slow
def test_best_checkpoint_of_a_run_that_was_not_validated_can_be_used(ended: Path, tmp_path: Path) -> None:
    best = ended / "max_steps/checkpoints/best.ckpt"
    run_command("evaluate", f"ckpt_path={best}", "trainer=cpu", cwd=tmp_path)
    run_command("export", f"ckpt_path={best}", "formats=[safetensors]", cwd=tmp_path)
