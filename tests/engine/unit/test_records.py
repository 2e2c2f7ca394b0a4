"""The table of runs: what a run's record says, which are old, and which are never removed."""

import csv
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from lightning.pytorch.loggers import CSVLogger

from {{ cookiecutter.package_name }}.engine.console import python
from {{ cookiecutter.package_name }}.engine.early_checks import checked
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.inference.runtime import digest
from {{ cookiecutter.package_name }}.engine.reporting.run_report import restore_metrics
from {{ cookiecutter.package_name }}.engine.reporting.runs import Run, find, find_one, older_than, remove
from {{ cookiecutter.package_name }}.engine.runs import run_record
from {{ cookiecutter.package_name }}.engine.runs.resume import find as find_resumed
from {{ cookiecutter.package_name }}.engine.runs.resume import with_resumed


def make_run(folder: Path, name: str, options: tuple[str, ...] = (), days: float = 0) -> Run:
    run_dir = folder / "logs/train/runs" / name
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / ".hydra/config.yaml").write_text("seed: 1\n", encoding="utf-8")
    (run_dir / ".hydra/overrides.yaml").write_text(json.dumps(list(options)), encoding="utf-8")
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints/best.ckpt").write_bytes(name.encode())
    started = time.strftime(run_record.TIME_FORMAT, time.localtime(time.time() - days * 24 * 3600))
    run_record.write(run_dir, state="finished", started=started)
    return Run(name, run_dir)


def export(folder: Path, run: Run) -> Path:
    bundle = folder / "artifacts/mine/1"
    bundle.mkdir(parents=True)
    checkpoint = {"sha256": digest(run.folder / "checkpoints/best.ckpt")}
    (bundle / "manifest.json").write_text(json.dumps({"checkpoint": checkpoint}), encoding="utf-8")
    return bundle


def test_runs_and_jobs_of_sweeps_are_found_the_oldest_first(tmp_path: Path) -> None:
    make_run(tmp_path, "b", days=1)
    make_run(tmp_path, "a", days=2)
    job = tmp_path / "logs/train/multiruns/c/0/.hydra"
    job.mkdir(parents=True)
    (job / "config.yaml").touch()
    assert [run.name for run in find(tmp_path / "logs")] == ["a", "b", "c/0"]


def test_run_is_named_by_its_time_its_directory_or_latest(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name) for name in ("2026-01-01", "2026-01-02")]
    assert find_one("2026-01-01", runs) is runs[0]
    assert find_one(str(runs[0].folder), runs) is runs[0]
    assert find_one("latest", runs) is runs[1]
    with pytest.raises(UserError, match="'2026-01-03' is no run; did you mean '2026-01-02'"):
        find_one("2026-01-03", runs)


def test_old_runs_are_those_that_began_before(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, f"{days} days", days=days) for days in (40, 20)]
    assert older_than(30, runs) == [runs[0]]
    assert older_than(None, runs) == []


def test_run_that_a_bundle_came_from_is_kept_and_nothing_else_removed(tmp_path: Path) -> None:
    first, exported = make_run(tmp_path, "first"), make_run(tmp_path, "exported")
    bundle = export(tmp_path, exported)
    with pytest.raises(UserError, match=f"'exported' is kept: the bundle {bundle} came from it; nothing was removed"):
        remove([first, exported], [], tmp_path / "artifacts")
    assert first.folder.exists()
    remove([], [first, exported], tmp_path / "artifacts")
    assert not first.folder.exists()
    assert exported.folder.exists()


def test_run_whose_checkpoints_have_changed_since_the_export_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    run_record.add_bundle(run.folder / "checkpoints/best.ckpt", export(tmp_path, run))
    (run.folder / "checkpoints/best.ckpt").write_bytes(b"of a later epoch")
    with pytest.raises(UserError, match="came from it"):
        remove([run], [], tmp_path / "artifacts")


def test_checkpoint_in_a_folder_of_its_own_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    export(tmp_path, run)
    (run.folder / "checkpoints/epoch=3-val").mkdir()
    (run.folder / "checkpoints/best.ckpt").rename(run.folder / "checkpoints/epoch=3-val/loss=0.1.ckpt")
    with pytest.raises(UserError, match="came from it"):
        remove([run], [], tmp_path / "artifacts")


def test_run_that_is_just_beginning_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    (run.folder / run_record.FILE).unlink()
    with pytest.raises(UserError, match="it is just beginning"):
        remove([run], [], tmp_path / "artifacts")


def test_run_is_kept_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    (export(tmp_path, run) / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read; nothing was removed"):
        remove([run], [], tmp_path / "artifacts")


def test_run_that_is_going_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    with FileLock(run.folder / run_record.LOCK), pytest.raises(UserError, match="it is still going"):
        remove([run], [], tmp_path / "artifacts")


def test_record_tells_how_a_run_ended(tmp_path: Path) -> None:
    assert run_record.read_state(tmp_path) == "not begun"
    with run_record.locked_run(tmp_path):
        run_record.write_start(tmp_path, ["seed=1"], {"git": None, "versions": {}}, {})
        assert run_record.read_state(tmp_path) == "running"
        with pytest.raises(UserError, match="still going"), run_record.locked_run(tmp_path):
            pass
    assert run_record.read_state(tmp_path) == "finished"
    assert run_record.typed_options(tmp_path) == ["seed=1"]
    for error, state in ((KeyboardInterrupt(), "interrupted"), (RuntimeError("no room"), "failed")):
        with pytest.raises(type(error)):
            begin_and_raise(tmp_path, error)
        assert run_record.read_state(tmp_path) == state
    assert run_record.read(tmp_path)["reason"] == "no room"
    before = run_record.read(tmp_path)
    with pytest.raises(UserError):
        begin_and_raise(tmp_path, UserError("another schedule"), steps=False)
    assert run_record.read(tmp_path) == before, "a run that was to go on and took no step"
    with pytest.raises(KeyboardInterrupt):
        begin_and_raise(tmp_path, KeyboardInterrupt(), steps=False)
    assert run_record.read(tmp_path) == before
    run_record.write_start(tmp_path, ["seed=9"], {}, {})  # and killed before its first step
    assert run_record.typed_options(tmp_path) == before["options"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


def begin_and_raise(run_dir: Path, error: BaseException, steps: bool = True) -> None:
    with run_record.locked_run(run_dir):
        run_record.write_start(run_dir, [], {}, {})
        if steps:
            run_record.write_first_step(run_dir, "97 an epoch, in one batch of 97", {})
        raise error


def test_refused_start_changes_nothing_of_what_is_known(tmp_path: Path) -> None:
    run_record.write(tmp_path, state="finished", options=["seed=1"])
    before = run_record.read(tmp_path)
    with pytest.raises(UserError), run_record.locked_run(tmp_path):
        raise UserError("trainer.devices=99 is too many")
    assert run_record.read(tmp_path) == before


def test_run_whose_process_is_gone_is_lost(tmp_path: Path) -> None:
    run_record.write_start(tmp_path, None, {}, {})
    (tmp_path / run_record.LOCK).touch()
    assert run_record.read_state(tmp_path) == "lost"


def test_refused_run_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(UserError), run_record.locked_run(tmp_path):
        raise UserError("no")
    assert not any(tmp_path.iterdir())


def test_resumed_run_has_its_own_options_and_over_them_what_is_typed(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine", options=("seed=3", "trainer.max_epochs=2", "+callbacks.search.trial_id=1"))
    arguments = with_resumed([f"resume={run.folder}", "trainer.max_epochs=5"])
    assert arguments[:2] == ["seed=3", "trainer.max_epochs=5"]
    assert arguments[2:] == [
        f'resume="{run.folder}"',
        f'hydra.run.dir="{run.folder}"',
        "hydra.output_subdir=null",
    ]
    assert with_resumed(["seed=1"]) == ["seed=1"]
    run_record.write(run.folder, options=["seed=3", "trainer.max_epochs=5"])  # of the last time that it went on
    assert with_resumed([f"resume={run.folder}"])[:2] == ["seed=3", "trainer.max_epochs=5"]


@pytest.mark.parametrize("option", ["weights", "ckpt_path"])
def test_start_of_a_run_that_goes_on_need_not_be_there_any_more(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "a")
    config: dict[str, Any] = {option: "gone.ckpt", "paths": {"output_dir": str(run.folder)}, "resume": None}
    with pytest.raises(UserError, match=f"{option}=gone.ckpt does not exist"):
        checked("train", config)
    assert checked("train", {**config, "resume": str(run.folder)})
    monkeypatch.setenv("TRAIN_RUN_NAME", "a")  # the command of a job that was killed, as it was typed before
    assert checked("train", config)
    (run.folder / "checkpoints/best.ckpt").unlink()
    with pytest.raises(UserError, match=f"{option}=gone.ckpt does not exist"):
        checked("train", config)


def test_next_command_names_the_interpreter_as_it_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert python() == ".venv/bin/python"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    assert python() == "python"


def test_latest_run_is_the_one_that_was_written_last(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "a"), make_run(tmp_path, "b")
    os.utime(second.folder, (0, 0))
    os.utime(second.folder / "checkpoints/best.ckpt", (0, 0))
    assert find_resumed("latest", tmp_path / "logs") == first.folder.resolve()


def test_many_runs_cannot_go_on_as_one() -> None:
    with pytest.raises(UserError, match="-m makes many"):
        with_resumed(["-m", "resume=latest"])


def test_figures_that_only_the_checkpoint_has_are_in_the_curves_of_a_run_that_goes_on(tmp_path: Path) -> None:
    """Killed after the checkpoint of an epoch was saved, and before its figures were logged."""
    before = tmp_path / "before.csv"
    before.write_text("epoch,step,train/loss,val/loss\n0,9,0.5,\n0,9,,0.4\n1,19,,0.2\n2,25,0.1,\n", encoding="utf-8")
    checkpoint: Any = SimpleNamespace(step=20, epoch=1, figures={"train/loss": 0.3, "val/loss": 0.2})
    for _ in range(2):  # in the file already, the second time
        restore_metrics(before, [CSVLogger(str(tmp_path), name="", version="")], checkpoint)
        with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = [(row["step"], row["train/loss"], row["val/loss"]) for row in csv.DictReader(file)]
        assert rows == [("9", "0.5", ""), ("9", "", "0.4"), ("19", "", "0.2"), ("19", "0.3", "")]
        before = tmp_path / "again.csv"
        (tmp_path / "metrics.csv").rename(before)
