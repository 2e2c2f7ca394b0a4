"""A search as its user runs it: in one process, in two, killed, and with mistakes in it."""

import csv
import os
import random
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from conftest import is_empty_soon, run_command, started, wait_for
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

QUICK = ("trainer=cpu", "model=mlp", "trainer.max_epochs=2")
SPACE = """monitor: val/loss
mode: min
space:
  {space}
sampler:
  _target_: optuna.samplers.RandomSampler
pruner:
  _target_: optuna.pruners.MedianPruner
  n_startup_trials: 1
  n_warmup_steps: 0
"""


def with_space(folder: Path, space: str) -> tuple[str, str]:
    """Options that choose a space of one's own, from a folder beside the package."""
    (folder / "configs/search").mkdir(parents=True)
    (folder / "configs/search/mine.yaml").write_text(SPACE.format(space=space), encoding="utf-8")
    return f"--config-dir={folder / 'configs'}", "search=mine"


def rows(folder: Path, name: str = "default") -> list[dict[str, str]]:
    with (folder / "logs/search" / name / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_share_the_trials_and_failed_ones_are_marked(tmp_path: Path) -> None:
    """Of eight trials two fail: those with a learning rate that no optimizer takes."""
    space = with_space(tmp_path, "model.optimizer.lr: [-1, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007]")
    command = (*space, "num_trials=8", *QUICK, "seed=3", "search.pruner=null")
    with started("search", *command, cwd=tmp_path) as first, started("search", *command, cwd=tmp_path) as second:
        said = [first.communicate(timeout=300), second.communicate(timeout=300)]
    assert [first.returncode, second.returncode] == [0, 0], said
    run = [re.findall(r"^trial (\d+)", printed, re.MULTILINE) for printed, _ in said]
    assert min(map(len, run)) > 0, "each has run some"
    assert sorted(map(int, run[0] + run[1])) == list(range(8)), "and none both"
    process = run_command("search", *command, cwd=tmp_path)
    assert "trials      8: 6 finished, 2 failed" in process.stdout
    found = rows(tmp_path, "mine")
    assert [row["trial"] for row in found] == [str(number) for number in range(8)]
    assert all("learning rate" in row["failure"] for row in found if row["state"] == "failed")


def test_killed_search_loses_no_trial_and_repeats_none(tmp_path: Path) -> None:
    command = ("num_trials=3", *QUICK)
    with started("search", *command, cwd=tmp_path) as process:
        wait_for(process, "trial 1")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert is_empty_soon(process.pid), "the trial goes on without its search"
    kept = (tmp_path / "logs/search/default/trials/0/metrics.json").read_bytes()
    assert "trials      3: 3 finished" in run_command("search", *command, cwd=tmp_path).stdout
    assert (tmp_path / "logs/search/default/trials/0/metrics.json").read_bytes() == kept
    found = rows(tmp_path)
    assert [row["trial"] for row in found] == ["0", "2", "3"]
    assert len({row["model.optimizer.lr"] for row in found}) == 3
    folders = {path.name for path in (tmp_path / "logs/search/default/trials").iterdir()}
    assert folders == {"0", "2", "3"}, "nothing is left of the lost one"


@pytest.mark.slow
def test_search_killed_at_any_moment_loses_no_finished_trial_and_repeats_none(tmp_path: Path) -> None:
    """Eight times, from its start-up to the end of a trial; the figures of those that were finished stay."""
    command, moments = ("num_trials=10", *QUICK), random.Random(1)
    known: dict[int, float | None] = {}
    for _ in range(8):
        with started("search", *command, cwd=tmp_path) as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(4, 30))
            process.kill()
            process.wait()
            assert is_empty_soon(process.pid)
        if (tmp_path / "logs/search/default/search.db").exists():
            finished = finished_trials(tmp_path)
            assert finished.items() >= known.items()
            known = finished
    assert known, "not even one trial came to its end"
    assert "trials      10: 10 finished" in run_command("search", *command, cwd=tmp_path).stdout
    assert finished_trials(tmp_path).items() >= known.items()
    found = rows(tmp_path)
    assert len({row["model.optimizer.lr"] for row in found}) == len(found) == 10


def finished_trials(folder: Path) -> dict[int, float | None]:
    address = f"sqlite:///{folder}/logs/search/default/search.db"
    storage = optuna.storages.RDBStorage(address, engine_kwargs={"poolclass": NullPool})
    (study,) = optuna.get_all_study_names(storage) or [None]
    if study is None:
        return {}
    trials = optuna.load_study(study_name=study, storage=storage).get_trials(states=(TrialState.COMPLETE,))
    return {trial.number: trial.value for trial in trials}


def test_trial_ends_with_its_search(tmp_path: Path) -> None:
    """One that would go on for much longer than is waited for it here."""
    endless = ("trainer.max_epochs=1000000", "callbacks.early_stopping=null")
    with started("search", *QUICK, *endless, cwd=tmp_path) as process:
        wait_for(process, "trial 0")
        log = tmp_path / "logs/search/default/trials/0/train.log"
        for _ in range(600):
            if log.is_file() and "learning rate" in log.read_text(encoding="utf-8"):
                break
            time.sleep(0.1)
        process.kill()
        process.wait()
        assert is_empty_soon(process.pid)
    assert "learning rate" in log.read_text(encoding="utf-8"), "the trial had not begun"


def test_trials_are_pruned_under_ddp_too(tmp_path: Path) -> None:
    """The first runs to its end, as there is none to compare it with; a rate of nothing is then worse at once."""
    space = with_space(tmp_path, "model.optimizer.lr: [0.005, 1.0e-9]")
    two = ("strategy=ddp", "trainer.devices=2")
    process = run_command("search", *space, "num_trials=2", *QUICK, *two, "seed=2", cwd=tmp_path)
    assert "trials      2: 1 finished, 1 pruned" in process.stdout
    assert [row["validations"] for row in rows(tmp_path, "mine")] == ["2", "1"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["+search.space.modle=[cnn]"], "search.space: 'modle' is no option; did you mean 'model'?"),
        (["+search.space.seed=[1,2]", "seed=3"], "'seed' is for the search to choose"),
        (["search.montior=val/acc"], "did you mean 'search.monitor'"),
        (["search.sampler._target_=optuna.samplers.TPESamplr"], "optuna.samplers.TPESamplr cannot be imported"),
        (["search.mode=up"], "it takes min or max"),
        (["num_trials=0"], "num_trials=0 is no search"),
        (["name=a/b"], "is no name of a folder"),
    ],
)
def test_mistake_is_refused_before_the_first_trial(options: list[str], sentence: str, tmp_path: Path) -> None:
    process = run_command("search", *QUICK, *options, cwd=tmp_path, check=False)
    assert process.returncode == 2
    assert sentence in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "logs/search").exists() or not any((tmp_path / "logs/search").iterdir())


def test_metric_that_is_never_logged_ends_the_search(tmp_path: Path) -> None:
    process = run_command("search", *QUICK, "search.monitor=val/accuracy", cwd=tmp_path, check=False)
    assert process.returncode == 2
    assert "search.monitor='val/accuracy' is never logged; did you mean 'val/acc'?" in process.stderr
    assert process.stdout.count("trial ") == 1
