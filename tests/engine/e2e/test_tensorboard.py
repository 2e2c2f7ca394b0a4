"""Runs in TensorBoard: what is in them, and how one goes on."""

import subprocess
import sys
from pathlib import Path

import {{ cookiecutter.package_name }} as package

from conftest import run_command

TRAIN = ("train", "trainer=cpu", "model=mlp")


def scalars(run_dir: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_a_run_and_what_it_goes_on_to_are_one_curve(tmp_path: Path) -> None:
    run_command(*TRAIN, "trainer.max_epochs=1", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert len(scalars(run_dir, "val/loss")) == 1
    run_command(*TRAIN, "resume=latest", "trainer.max_epochs=2", cwd=tmp_path)
    assert len(scalars(run_dir, "val/loss")) == 2
    assert (run_dir / "metrics.csv").is_file()
    assert (run_dir / "curves.png").is_file()


def test_tracker_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    """Lightning is told that it did not find tensorboard; the refusal is the real one."""
    code = (
        "import lightning.fabric.loggers.tensorboard as tensorboard\n"
        "tensorboard._TENSORBOARD_AVAILABLE = tensorboard._TENSORBOARDX_AVAILABLE = False\n"
        f"from {package.__name__}.train import main; main()"
    )
    command = [sys.executable, "-c", code, "trainer=cpu"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    sentence = "logger=tensorboard is not installed: run 'pip install -c constraints.txt tensorboard'"
    assert refused.stderr.count("\n") == 1
    assert sentence in refused.stderr
