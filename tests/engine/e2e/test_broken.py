"""Data, processes, numbers and disks that break a run: one sentence, and what was saved before it can be loaded."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import HANGS, TWO_PROCESSES, curves, run_command, trained, weights

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.training import checkpoints
from {{ cookiecutter.package_name }}.engine.training.callbacks.nan_guard import FILE
from {{ cookiecutter.package_name }}.engine.training.checkpoint_io import is_damaged

RUN = ("trainer=cpu", "model=mlp", "trainer.max_epochs=4")


@pytest.fixture(autouse=True)
def importable_spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))


def spoiled(name: str, **options: object) -> list[str]:
    return [f"+callbacks.spoil.{key}={value}" for key, value in {"_target_": f"spoil.{name}", **options}.items()]


def assert_one_sentence(process: subprocess.CompletedProcess[str], *words: str, exit_code: int = 1) -> None:
    assert process.returncode == exit_code, process.stdout + process.stderr
    (line,) = (line for line in process.stderr.splitlines() if "resource_tracker" not in line)
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def the_run(folder: Path) -> Path:
    (run_dir,) = (folder / "logs/train/runs").iterdir()
    return run_dir


def assert_saved_until(run_dir: Path, num_epochs: int) -> None:
    saved = [checkpoints.load(path) for path in run_dir.glob("checkpoints/*.ckpt")]
    assert len(saved) == min(3, num_epochs + 1)
    assert max(checkpoint.epoch + 1 for checkpoint in saved) == num_epochs
    assert json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["state"] == "failed"


def test_sample_that_cannot_be_read_in_the_third_epoch_is_named(tmp_path: Path) -> None:
    process = run_command("train", *RUN, *spoiled("BadSample", epoch=2), cwd=tmp_path, check=False)
    assert_one_sentence(process, "sample 17 of the ", "cannot be read: ValueError: a broken picture (spoil.py:")
    assert_saved_until(the_run(tmp_path), 2)
    run_command("train", "resume=latest", "callbacks.spoil=null", cwd=tmp_path)


def test_worker_process_that_is_lost_is_told(tmp_path: Path) -> None:
    """It may hand over a batch just then, so the reason in brackets is not always that signal."""
    options = (*RUN, "data.num_workers=1", *spoiled("LostWorker"))
    process = run_command("train", *options, cwd=tmp_path, check=False)
    assert_one_sentence(process, "a process that reads samples was lost (", "data.num_workers=0")


@pytest.mark.parametrize("strategy", [(), pytest.param(TWO_PROCESSES, marks=pytest.mark.slow)])
def test_loss_that_is_no_number_stops_the_run_before_it_is_saved(strategy: tuple[str, ...], tmp_path: Path) -> None:
    options = (*RUN, "callbacks.last.every_n_steps=1", *strategy, *spoiled("NotANumber", steps=[10]))
    process = run_command("train", *options, cwd=tmp_path, check=False)
    assert_one_sentence(process, "the loss is nan at batch ", f"/{FILE}", "callbacks.nan_guard.skip=true")
    run_dir = the_run(tmp_path)
    (batch,) = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    assert len(set(batch["samples"])) == (32 if strategy else 64)
    assert all(weight.isfinite().all() for weight in weights(run_dir).values())
    assert checkpoints.load(run_dir / "checkpoints/last.ckpt").step == 10


@pytest.mark.slow
def test_batches_whose_loss_is_no_number_are_left_out_alike_under_each_strategy(tmp_path: Path) -> None:
    options = (*RUN, "trainer.precision=64-true", "model.net.dropout=0", "callbacks.nan_guard.skip=true")
    found, listed = {}, {}
    for name, strategy in (("single", ()), ("ddp", (*TWO_PROCESSES, "data.micro_batch_size=16"))):
        (tmp_path / name).mkdir()
        found[name] = trained(tmp_path / name, *options, *strategy, *spoiled("NotANumber", steps="[3,10]"))
        skipped = json.loads((found[name] / FILE).read_text(encoding="utf-8"))
        assert (skipped[0]["epoch"], skipped[0]["batch"]) == (1, 4)
        listed[name] = [sorted(batch["samples"]) for batch in skipped]
    assert listed["single"] == listed["ddp"], "of the whole batch, whichever rank met it"
    assert len(listed["single"][0]) == 64
    for name, weight in weights(found["single"]).items():
        assert weight.isfinite().all()
        assert weight.allclose(weights(found["ddp"])[name], rtol=0, atol=1e-10), name
    assert curves(found["single"]) == pytest.approx(curves(found["ddp"]), abs=1e-10)


@pytest.mark.slow
def test_run_whose_every_loss_is_no_number_ends(tmp_path: Path) -> None:
    steps = "[" + ",".join(map(str, range(10, 400))) + "]"
    options = (*RUN, "callbacks.nan_guard.skip=true", *spoiled("NotANumber", steps=steps))
    process = run_command("train", *options, cwd=tmp_path, check=False)
    assert_one_sentence(process, "the gradients of 10 batches one after the other are not finite")


def test_monitored_score_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    monitor = ("callbacks.early_stopping.monitor=val/acc", "callbacks.early_stopping.mode=max")
    options = (*RUN, *monitor, *spoiled("NotANumber", score="val/acc", epoch=2))
    process = run_command("train", *options, cwd=tmp_path, check=False)
    assert_one_sentence(process, "val/acc is nan after epoch 3", "monitors")
    assert_saved_until(the_run(tmp_path), 2)


def limited(num_blocks: int, verb: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """No file may grow beyond so many KiB: what a full disk does, without one."""
    command = f'ulimit -f {num_blocks}; exec "{sys.executable}" -m {package.__name__}.{verb} "$@"'
    arguments = ["bash", "-c", command, verb, *options]
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=HANGS, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [(), TWO_PROCESSES])
def test_disk_that_is_full_loses_nothing_that_was_saved(strategy: tuple[str, ...], tmp_path: Path) -> None:
    run_dir = trained(tmp_path, *RUN[:2], "trainer.max_epochs=2", *strategy)
    before = weights(run_dir)
    process = limited(100, "train", "resume=latest", "trainer.max_epochs=3", cwd=tmp_path)
    assert_one_sentence(process, f"a file in {run_dir} cannot be written: File too large", exit_code=2)
    assert not [path for path in run_dir.glob("checkpoints/*.ckpt") if is_damaged(path)]
    assert not list(run_dir.glob("checkpoints/*.incoming"))
    assert all(weight.equal(before[name]) for name, weight in weights(run_dir).items())
    run_command("train", "resume=latest", "trainer.max_epochs=3", cwd=tmp_path)


@pytest.mark.slow
def test_log_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, *RUN[:2], "trainer.max_epochs=2")
    (run_dir / "train.log").write_bytes(b"x" * (1024 * 1024 - 9) + b"\n")  # all other files are smaller
    process = limited(1024, "train", "resume=latest", "trainer.max_epochs=3", cwd=tmp_path)
    assert_one_sentence(process, "cannot be written: File too large", exit_code=2)
    assert checkpoints.load(run_dir / "checkpoints/last.ckpt").epoch == 1


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """For root, whom no permission stops, by a mount."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    commands = (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder])
    if any(subprocess.run(command, capture_output=True, check=False).returncode for command in commands):
        pytest.skip("not run: root may write to any folder, and may mount none here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_run_directory_that_cannot_be_written_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, *RUN[:2], "trainer.max_epochs=1")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with read_only(run_dir):
        process = run_command("train", "resume=latest", "trainer.max_epochs=2", cwd=tmp_path, check=False)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert "cannot be written by this user" in line
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
