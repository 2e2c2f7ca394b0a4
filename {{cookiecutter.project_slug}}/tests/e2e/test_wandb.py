"""Runs in Weights & Biases: what is in them, how one goes on, and that it never ends one."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_command

from {{ cookiecutter.package_name }} import record

TRAIN = ("train", "trainer=cpu", "model=mlp")


def folders(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def contents(folder: Path) -> str:
    """What `wandb sync` would send, as text."""
    (file,) = folder.glob("run-*.wandb")
    command = [sys.executable, "-c", DUMP, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


DUMP = """
import sys
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore
store = DataStore()
store.open_for_scan(sys.argv[1])
while (data := store.scan_data()) is not None:
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    print(record)
"""


def test_a_run_and_what_it_goes_on_to_have_one_number(tmp_path: Path) -> None:
    offline = "logger.wandb.offline=true"
    run_command(*TRAIN, offline, "trainer.max_epochs=1", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    number = record.read(run_dir)["trackers"]["wandb"]
    run_command("train", "resume=latest", "trainer.max_epochs=2", cwd=tmp_path)
    assert record.read(run_dir)["trackers"]["wandb"] == number
    assert [folder.name.rsplit("-", 1)[-1] for folder in folders(run_dir)] == [number, number]
    sent = "".join(map(contents, folders(run_dir)))
    assert all(word in sent for word in ("val/loss", "optimizer", "versions", "torchmetrics", "test/acc"))
    assert "val/loss" in (run_dir / "metrics.csv").read_text(encoding="utf-8")


def test_jobs_of_a_sweep_are_runs_of_their_own(tmp_path: Path) -> None:
    options = ("-m", "seed=1,2", "logger.wandb.offline=true", "trainer.max_epochs=1")
    run_command(*TRAIN, *options, cwd=tmp_path)
    jobs = sorted(tmp_path.glob("logs/train/multiruns/*/[01]"))
    assert len({record.read(job)["trackers"]["wandb"] for job in jobs}) == 2


def test_server_that_does_not_answer_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    process = run_command(*TRAIN, "trainer.max_epochs=1", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert process.stdout.count("warning     wandb does not answer; to send this run later: wandb sync") == 1
    assert len(folders(run_dir)) == 1
    assert record.state_of(run_dir) == "finished"
