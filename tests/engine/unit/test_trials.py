"""The search: its space, whose turn it is, and what becomes of trials that fail, are pruned or are lost."""

import csv
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.search import storage
from {{ cookiecutter.package_name }}.engine.search.space import distributions, options, samples, short_names
from {{ cookiecutter.package_name }}.engine.search.study import PRUNED, Search, Settings
from {{ cookiecutter.package_name }}.engine.search.report import report_search

SPACE = {"model.optimizer.lr": {"low": 0.001, "high": 0.1, "log": True}, "data.batch_size": [32, 64]}
Open = Callable[..., Search]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def open_search(given: list[str] | None = None, space: dict[str, Any] = SPACE, **changed: Any) -> Search:
        sampler = {"_target_": "optuna.samplers.RandomSampler"}
        section = {"monitor": "val/loss", "mode": "min", "sampler": sampler, "pruner": None, "space": space}
        settings = Settings(**{**section, **changed})
        (tmp_path / "mine").mkdir(exist_ok=True)
        return Search(tmp_path / "mine", settings, distributions(space), given or [], seed=1)

    return open_search


def run_trial(search: Search, num_trials: int, value: float, failure: str | None = None) -> int:
    trial = search.claim(num_trials)
    assert trial is not None
    trial.report(value, 0)
    search.finish(trial.number, failure)
    search.release()
    return trial.number


def test_choices_and_ranges_become_distributions() -> None:
    space = distributions({**SPACE, "a": {"low": 1, "high": 9, "step": 2}, "b": [None, True, [1, "x y"], "it's"]})
    kinds = [type(kind).__name__.removesuffix("Distribution") for kind in space.values()]
    assert kinds == ["Float", "Categorical", "Int", "Categorical"]


def test_options_are_read_by_hydra_as_they_were_meant() -> None:
    choices = [None, True, [1, "x y"], "it's", 'a "b" \\', "cnn", "1, 2"]
    space = distributions({"a": choices})
    parser = OverridesParser.create()
    read = [parser.parse_override(*options({"a": choice}, space)).value() for choice in space["a"].choices]  # type: ignore[attr-defined]
    plain = [getattr(value, "text", value) for value in read]
    assert [[getattr(part, "text", part) for part in v] if isinstance(v, list) else v for v in plain] == choices


def test_range_is_tried_with_six_digits() -> None:
    space = distributions({"lr": {"low": 0.0, "high": 0.5, "step": 0.05}})
    assert options({"lr": 0.15000000000000002}, space) == ["lr=0.15"]


def test_every_choice_and_both_ends_are_tried() -> None:
    tried = samples(distributions({"a": [1, 2, 3], "b": {"low": 0.1, "high": 0.2}}))
    assert {sample["a"] for sample in tried} == {1, 2, 3}
    assert {sample["b"] for sample in tried} == {0.1, 0.2}


def test_short_names_are_the_shortest_that_no_other_has() -> None:
    space = distributions({key: [1] for key in ("model.optimizer.lr", "model.net.dropout", "x.dropout", "seed")})
    assert list(short_names(space).values()) == ["lr", "net.dropout", "x.dropout", "seed"]


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({}, "is empty"),
        ({"a": []}, "a list of choices, or low and high"),
        ({"a": 3}, "a list of choices, or low and high"),
        ({"a": {"low": 1}}, "a list of choices, or low and high"),
        ({"a": {"low": 1, "high": 2, "logg": True}}, "did you mean 'log'"),
        ({"a": {"low": "x", "high": 2}}, "holds what is no number"),
        ({"a": {"low": 3, "high": 2}}, "is no space"),
        ({"a": {"low": 0, "high": 2.5, "log": True}}, "is no space"),
        ({"a": [{"b": 1}]}, "numbers, words or lists"),
    ],
)
def test_space_that_is_none_is_refused(space: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        distributions(space)


def test_two_processes_get_different_trials_and_no_more_than_asked(opened: Open) -> None:
    searches = [opened() for _ in range(4)]
    claimed = [search.claim(3) for search in searches[:3]]
    assert [trial.number for trial in claimed if trial] == [0, 1, 2]
    assert len({str(trial.params) for trial in claimed if trial}) == 3
    assert searches[3].claim(3) is None


def test_trial_of_a_dead_process_is_run_again_and_no_other(opened: Open, tmp_path: Path) -> None:
    killed, alive = opened(), opened()
    lost, running = killed.claim(3), alive.claim(3)
    assert lost is not None
    assert running is not None
    (killed.folder_of(lost.number) / "output.txt").touch()
    killed.release()  # as the system does for a process that has ended
    again = opened().claim(3)
    assert again is not None
    assert again.params == lost.params
    assert not killed.folder_of(lost.number).exists()
    assert [trial.number for trial in opened().trials()] == [running.number, again.number]


def test_trial_that_ended_while_its_search_was_killed_is_finished(opened: Open) -> None:
    killed = opened()
    trial = killed.claim(1)
    assert trial is not None
    trial.report(0.5, 0)
    (killed.folder_of(trial.number) / "metrics.json").touch()
    killed.release()
    assert opened().claim(1) is None
    assert [(found.number, found.value) for found in opened().trials()] == [(0, 0.5)]


def test_finished_trials_stay_and_are_not_repeated(opened: Open) -> None:
    for number in range(3):
        assert run_trial(opened(), 3, value=1.0) == number
    assert opened().claim(3) is None
    assert run_trial(opened(), 4, value=2.0) == 3
    assert len({str(trial.params) for trial in opened().trials()}) == 4


def test_failed_and_pruned_trials_are_marked_and_told(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    search = opened()
    run_trial(search, 9, value=0.5)
    run_trial(search, 9, value=float("nan"))
    run_trial(search, 9, value=0.1, failure="the disk is full")
    trial = search.claim(9)
    assert trial is not None
    trial.report(0.9, 0)
    trial.set_user_attr(PRUNED, 1)
    assert search.finish(trial.number, None) == "val/loss 0.9, pruned after 1 validation"
    assert search.failures() == ["val/loss was never a number.", "the disk is full"]
    with caplog.at_level("INFO"):
        report_search(search, ["trainer=cpu"])
    assert "4: 1 finished, 1 pruned, 2 failed" in caplog.text
    assert "best        trial 0, val/loss 0.5" in caplog.text
    with (search.folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished", "failed", "failed", "pruned"]
    assert rows[2]["failure"] == "the disk is full"
    assert (search.folder / "search.png").stat().st_size > 10_000


def test_search_without_a_result_says_why(opened: Open) -> None:
    search = opened()
    run_trial(search, 1, value=0.1, failure="no room")
    with pytest.raises(UserError, match="no trial came to a result: no room"):
        report_search(search, [])


def test_best_follows_the_mode(opened: Open) -> None:
    search = opened(mode="max")
    trial = search.claim(2)
    assert trial is not None
    for step, value in enumerate([0.3, 0.7, 0.5]):
        trial.report(value, step)
    assert search.finish(trial.number, None) == "val/loss 0.7 (the best so far)"


def test_other_options_than_it_began_with_are_refused(opened: Open) -> None:
    run_trial(opened(["trainer=cpu", "seed=1"]), 1, value=0.5)
    opened(["seed=1", "trainer=cpu"])  # in another order they are the same
    with pytest.raises(UserError, match=r"began with options=\[seed=1, trainer=cpu\], not \[seed=2\]"):
        opened(["seed=2"])
    with pytest.raises(UserError, match="began with mode=min, not max"):
        opened(["trainer=cpu", "seed=1"], mode="max")


def test_options_of_a_mistake_are_replaced_and_its_failures_forgotten(opened: Open) -> None:
    run_trial(opened(["data.root=nowhere"]), 9, value=0.5, failure="data.root=nowhere is no folder")
    mended = opened(["data.root=pictures"], mode="max")
    assert mended.trials() == []
    assert not mended.folder_of(0).exists()
    assert run_trial(mended, 1, value=0.5) == 0
    assert mended.study.best_value == 0.5


def test_options_may_change_after_an_interruption_before_any_result(opened: Open) -> None:
    search = opened()
    trial = search.claim(9)
    assert trial is not None
    search.give_back(trial.number)
    search.release()
    changed = opened(space={"data.batch_size": [8]})
    again = changed.claim(1)
    assert again is not None
    assert again.params == {"data.batch_size": 8}


def test_trial_that_ended_is_never_given_back(opened: Open) -> None:
    """Neither when Ctrl-C comes while it is told, nor when another process has told it meanwhile."""
    search, other = opened(), opened()
    trial = search.claim(1)
    assert trial is not None
    trial.report(0.5, 0)
    (search.folder_of(trial.number) / "metrics.json").touch()
    search.give_back(trial.number)
    assert other.finish(trial.number, None) == "was finished by another process"
    assert search.folder_of(trial.number).is_dir()
    assert [(found.number, found.value) for found in search.trials()] == [(0, 0.5)]


@pytest.mark.filterwarnings("ignore:BruteForceSampler is experimental")
def test_grid_that_is_tried_to_its_end_ends_the_search(opened: Open) -> None:
    search = opened(space={"a": [1, 2]}, sampler={"_target_": "optuna.samplers.BruteForceSampler"})
    assert [run_trial(search, 9, value=0.5) for _ in range(2)] == [0, 1]
    assert search.claim(9) is None


def test_search_of_another_folder_is_not_shared_by_its_name(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_STORAGE", f"sqlite:///{tmp_path}/shared.db")
    opened()
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is that of another folder: share that folder"):
        opened()


def test_trials_that_the_storage_does_not_know_are_left_alone(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "mine/trials/3").mkdir(parents=True)
    with pytest.raises(UserError, match="move them away"):
        opened()


def test_damaged_storage_is_one_sentence(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/search.db").write_bytes(b"no database " * 1000)
    with pytest.raises(UserError, match=r"search\.db cannot be used \(file is not a database\)"):
        opened()


def test_locked_storage_is_one_sentence(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.1)
    search = opened()
    with sqlite3.connect(tmp_path / "mine/search.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"search\.db cannot be used \(database is locked\)"):
            search.claim(1)
    other.close()


def test_storage_elsewhere_is_named_without_its_password(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_STORAGE", "nonsense://user:secret@host/name")
    with pytest.raises(UserError, match="SEARCH_STORAGE cannot be used") as refused:
        opened()
    assert "secret" not in str(refused.value)


def test_optuna_keeps_what_was_told(opened: Open, tmp_path: Path) -> None:
    """Its own tools, as the dashboard, read the file."""
    run_trial(opened(), 1, value=0.25)
    file = RDBStorage(f"sqlite:///{tmp_path}/mine/search.db", engine_kwargs={"poolclass": NullPool})
    loaded = optuna.load_study(study_name=None, storage=file)
    assert [(trial.state, trial.value) for trial in loaded.trials] == [(TrialState.COMPLETE, 0.25)]
