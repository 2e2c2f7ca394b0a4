"""Runs in Weights & Biases: what is in them, how one goes on, and that it never ends one."""

from pathlib import Path

import pytest
from {{ cookiecutter.package_name }}.engine.runs import run_record

from conftest import run_command

TRAIN = ("train", "trainer=cpu", "model=mlp")


def folders(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def contents(folder: Path) -> bytes:
    """What `wandb sync` would send: records with their words as they are."""
    (file,) = folder.glob("run-*.wandb")
    return file.read_bytes()


def test_a_run_and_what_it_goes_on_to_have_one_number(tmp_path: Path) -> None:
    offline = "logger.wandb.offline=true"
    run_command(*TRAIN, offline, "trainer.max_epochs=1", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    number = run_record.read(run_dir)["trackers"]["wandb"]
    run_command("train", "resume=latest", "trainer.max_epochs=2", cwd=tmp_path)
    assert run_record.read(run_dir)["trackers"]["wandb"] == number
    assert [folder.name.rsplit("-", 1)[-1] for folder in folders(run_dir)] == [number, number]
    first, second = map(contents, folders(run_dir))
    assert all(word in first for word in (b"val/loss", b"optimizer", b"versions", b"torchmetrics", b"test/acc"))
    assert b"val/loss" in second
    assert "val/loss" in (run_dir / "metrics.csv").read_text(encoding="utf-8")


def test_jobs_of_a_sweep_are_runs_of_their_own(tmp_path: Path) -> None:
    options = ("seed=1,2", "logger.wandb.offline=true", "trainer.max_epochs=1", "trainer=cpu", "model=mlp")
    run_command("train", "-m", *options, cwd=tmp_path)
    jobs = sorted(tmp_path.glob("logs/train/multiruns/*/[01]"))
    assert len({run_record.read(job)["trackers"]["wandb"] for job in jobs}) == 2


def test_server_that_does_not_answer_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    process = run_command(*TRAIN, "trainer.max_epochs=1", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert process.stdout.count("warning     wandb does not answer; to send this run later: wandb sync") == 1
    assert len(folders(run_dir)) == 1
    assert run_record.read_state(run_dir) == "finished"
