"""The search: its space, and what becomes of trials that fail, are pruned, are interrupted or are lost."""

import csv
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from PIL import Image
from sqlalchemy.pool import NullPool

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.search import study
from {{ cookiecutter.package_name }}.engine.search.report import report_search
from {{ cookiecutter.package_name }}.engine.search.space import distributions, options, samples, short_names
from {{ cookiecutter.package_name }}.engine.search.study import PRUNED, Search, Settings, usable_storage

{% if cookiecutter.data_kind == "images" %}
DATA, NUM_TRAINING = "{{ cookiecutter.package_name }}.data.digits.DigitsDataModule", 1257
{% endif %}
SPACE = {"model.optimizer.lr": {"low": 0.001, "high": 0.1, "log": True}, "data.batch_size": [32, 64]}
Open = Callable[..., Search]
Outcome = float | str | BaseException | Callable[[optuna.Trial, Path], str | None]

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens a search whose trainings have given outcomes: a reported value, a failure, an exception, a function."""
    monkeypatch.setattr(study, "HEARTBEAT", 1)
    monkeypatch.setattr(study, "GRACE", 2)
    outcomes: list[Outcome] = []
    searches: list[Search] = []

    def train(command: list[str], output: Path) -> str | None:
        outcome = outcomes.pop(0)
        trial = optuna.Trial(searches[-1].study, int(command[-1].rpartition("=")[2]))
        if isinstance(outcome, float):
            return finish(trial, output.parent, outcome)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome if isinstance(outcome, str) else outcome(trial, output.parent)

    monkeypatch.setattr(study, "train", train)

    def open_search(
        *given: Outcome, num_trials: int | None = None, command: tuple[str, ...] = (), **changed: Any
    ) -> Search:
        sampler = {"_target_": "optuna.samplers.RandomSampler"}
        section = {"monitor": "val/loss", "mode": "min", "sampler": sampler, "pruner": None, "space": SPACE}
        (tmp_path / "mine").mkdir(exist_ok=True)
        outcomes.extend(given)
        settings = Settings(**{**section, **changed})
        searches.append(Search(tmp_path / "mine", settings, list(command), num_trials or len(given), seed=1))
        return searches[-1]

    return open_search


def finish(trial: optuna.Trial, folder: Path, *values: float, pruned: bool = False) -> None:
    for step, value in enumerate(values):
        trial.report(value, step)
    if pruned:
        trial.set_user_attr(PRUNED, len(values))
    (folder / "metrics.json").touch()


def pruned(trial: optuna.Trial, folder: Path) -> None:
    finish(trial, folder, 0.9, pruned=True)


def kill(search: Search) -> None:
    """As if its process had been killed an hour ago: `optimize` does not see a `SystemExit`."""
    with pytest.raises(SystemExit):
        search.run()
    with sqlite3.connect(search.folder / "search.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    database.close()


def results(search: Search) -> list[tuple[int, float | None]]:
    return [(trial.number, trial.value) for trial in search.trials()]


def test_choices_and_ranges_become_distributions() -> None:
    space = distributions({**SPACE, "a": {"low": 1, "high": 9, "step": 2}, "b": [None, True, [1, "x y"], "it's"]})
    kinds = [type(kind).__name__.removesuffix("Distribution") for kind in space.values()]
    assert kinds == ["Float", "Categorical", "Int", "Categorical"]


{% if cookiecutter.data_kind == "images" %}
@pytest.fixture
def data_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    def compose(name: str, options: list[str]) -> dict[str, Any]:
        return {"data": {"_target_": DATA, "batch_size": int(options[-1].partition("=")[2])}, "seed": 1}

    monkeypatch.setattr(study, "compose", compose)


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([32, 64], [32, 64]),
        ([32, 5000, 9000], [32]),
        ({"low": 16, "high": 4096, "step": 16}, {"low": 16, "high": 1248, "step": 16}),
        ({"low": 16, "high": 5000, "log": True}, {"low": 16, "high": NUM_TRAINING, "log": True}),
        ({"low": 16, "high": 64}, {"low": 16, "high": 64}),
        (["32", 5000], ["32", 5000]),
    ],
)
@pytest.mark.usefixtures("data_of_the_project")
def test_batches_that_are_larger_than_the_training_split_are_left_out(
    sizes: Any, taken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    space = {"model.optimizer.lr": [0.1], "data.batch_size": sizes}
    assert study.without_too_large_batches(space, []) == {**space, "data.batch_size": taken}
    assert ("left out" in caplog.text) == (sizes != taken)
    if sizes == [32, 5000, 9000]:
        assert f"5000, 9000 of data.batch_size: there are {NUM_TRAINING} training samples" in caplog.text
    assert study.without_too_large_batches({"a": [1]}, []) == {"a": [1]}


@pytest.mark.usefixtures("data_of_the_project")
def test_data_that_needs_a_trainer_leaves_the_space_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'world_size'")

    monkeypatch.setattr(study, "build_datamodule", fails)
    assert study.without_too_large_batches({"data.batch_size": [32, 5000]}, []) == {"data.batch_size": [32, 5000]}


@pytest.mark.usefixtures("data_of_the_project")
def test_space_whose_smallest_batch_is_too_large_is_refused() -> None:
    with pytest.raises(UserError, match=f"data.batch_size=5000 is more than the {NUM_TRAINING} training samples"):
        study.without_too_large_batches({"data.batch_size": [5000, 6000]}, [])


{% endif %}
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


def test_short_names_are_the_last_words_unless_two_options_share_it() -> None:
    space = distributions({key: [1] for key in ("model.optimizer.lr", "model.net.dropout", "x.dropout", "seed")})
    assert list(short_names(space).values()) == ["lr", "model.net.dropout", "x.dropout", "seed"]


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


def test_two_processes_run_different_trials_and_no_more_than_asked(opened: Open) -> None:
    def share(trial: optuna.Trial, folder: Path) -> None:
        opened(0.2, 0.3, num_trials=3).run()
        finish(trial, folder, 0.1)

    search = opened(share, num_trials=3)
    search.run()
    assert results(search) == [(0, 0.1), (1, 0.2), (2, 0.3)]
    assert len({str(trial.params) for trial in search.trials()}) == 3


def test_trial_that_two_processes_begin_at_once_is_run_by_one(opened: Open) -> None:
    def begin(trial: optuna.Trial, folder: Path) -> None:
        opened(num_trials=1).study.optimize(search._run_trial, n_trials=1, catch=(study.TrialFailed,))
        finish(trial, folder, 0.1)

    search = opened(begin, num_trials=1)
    search.run()
    assert results(search) == [(0, 0.1)]


def test_trial_of_a_dead_process_is_run_again_and_no_other(opened: Open) -> None:
    kill(opened(0.1, SystemExit(), num_trials=3))
    (lost,) = [trial for trial in opened(num_trials=3).trials() if trial.state == TrialState.RUNNING]
    search = opened(0.2, 0.3, num_trials=3)
    search.run()
    assert results(search) == [(0, 0.1), (2, 0.2), (3, 0.3)]
    assert lost.params in [trial.params for trial in search.trials()[1:]]
    assert sorted(path.name for path in (search.folder / "trials").iterdir()) == ["0", "2", "3"]


@pytest.mark.parametrize("is_pruned", [False, True])
def test_training_that_ended_while_its_search_was_killed_is_not_repeated(is_pruned: bool, opened: Open) -> None:
    def end(trial: optuna.Trial, folder: Path) -> None:
        finish(trial, folder, 0.5, 0.4, pruned=is_pruned)
        raise SystemExit

    kill(opened(end, num_trials=1))
    search = opened(num_trials=1)
    search.run()
    (trial,) = search.trials()
    assert trial.state == (TrialState.PRUNED if is_pruned else TrialState.COMPLETE)
    assert search.best_value(trial) == 0.4
    assert next((search.folder / "trials").glob("*/metrics.json"))
    assert [path.name for path in (search.folder / "trials").iterdir()] == [str(trial.number)]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with Study.optimize")
def test_trial_of_a_process_that_was_killed_before_its_first_heartbeat_is_run_again(opened: Open) -> None:
    search = opened(0.1, num_trials=1)
    search.study.ask()
    with sqlite3.connect(search.folder / "search.db") as database:
        database.execute("UPDATE trials SET datetime_start = '2020-01-01 00:00:00.000000'")
    database.close()
    search.run()
    assert results(search) == [(1, 0.1)]


def test_interrupted_trial_is_run_again(opened: Open) -> None:
    search = opened(KeyboardInterrupt(), num_trials=1)
    with pytest.raises(KeyboardInterrupt):
        search.run()
    assert search.trials() == []
    (queued,) = search.study.get_trials(states=(TrialState.WAITING,))
    again = opened(0.1, num_trials=1)
    again.run()
    assert results(again) == [(1, 0.1)]
    assert again.trials()[0].params == queued.params


def test_trial_that_another_process_took_for_lost_ends_its_search_with_a_sentence(opened: Open) -> None:
    def stand_still(trial: optuna.Trial, folder: Path) -> None:
        trial.study.tell(trial.number, state=TrialState.FAIL)

    search = opened(stand_still, num_trials=2)
    with pytest.raises(UserError, match="stood still for more than 2 s"):
        search.run()


def test_finished_trials_stay_and_are_not_repeated(opened: Open) -> None:
    opened(0.1, 0.2).run()
    opened(num_trials=2).run()
    search = opened(0.3, num_trials=3)
    search.run()
    assert results(search) == [(0, 0.1), (1, 0.2), (2, 0.3)]
    assert len({str(trial.params) for trial in search.trials()}) == 3


def test_failed_and_pruned_trials_are_marked_and_reported(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    search = opened(0.5, float("nan"), "the disk is full", pruned)
    with caplog.at_level("INFO"):
        search.run()
        report_search(search)
    assert search.failures() == ["val/loss was never a number.", "the disk is full"]
    assert "val/loss 0.9, pruned after 1 validation, after" in caplog.text
    assert "4: 1 finished, 1 pruned, 2 failed" in caplog.text
    assert "best        trial 0, val/loss 0.5" in caplog.text
    with (search.folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished", "failed", "failed", "pruned"]
    assert rows[2]["failure"] == "the disk is full"
    assert "categorical units" not in caplog.text, "of matplotlib, about choices that are numbers"
    with Image.open(search.folder / "search.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    is_cross = (abs(pixels - (214, 39, 40)) < 12).all(axis=2)  # the colour of a trial that failed
    assert is_cross[: len(pixels) // 2].sum() > 20, "in the history"
    assert is_cross[len(pixels) // 2 :].sum() > 20, "beside the options"


def test_equal_failures_without_a_result_end_the_search(opened: Open) -> None:
    with pytest.raises(UserError, match="all 3 trials failed, so the search has ended: no room"):
        opened("no room", "no room", "no room", num_trials=9).run()


def test_search_without_a_result_says_why(opened: Open) -> None:
    search = opened("no room")
    search.run()
    with pytest.raises(UserError, match="no trial came to a result: no room"):
        report_search(search)


def test_best_follows_the_mode(opened: Open) -> None:
    search = opened(lambda trial, folder: finish(trial, folder, 0.3, 0.7, 0.5), 0.6, mode="max")
    search.run()
    assert results(search) == [(0, 0.7), (1, 0.6)]
    assert search.study.best_trial.number == 0


def test_other_options_than_it_began_with_are_refused(opened: Open) -> None:
    opened(0.5, command=("trainer=cpu", "seed=1")).run()
    opened(command=("seed=1", "trainer=cpu"), num_trials=1)  # in another order they are the same
    with pytest.raises(UserError, match=r"began with options=\[seed=1, trainer=cpu\], not \[seed=2\]"):
        opened(command=("seed=2",), num_trials=1)
    with pytest.raises(UserError, match="began with mode=min, not max"):
        opened(command=("trainer=cpu", "seed=1"), num_trials=1, mode="max")


def test_options_of_a_mistake_are_replaced_and_its_failures_forgotten(opened: Open) -> None:
    opened("data.root=nowhere is no folder", command=("data.root=nowhere",)).run()
    corrected = opened(0.5, command=("data.root=pictures",), mode="max")
    assert corrected.trials() == []
    assert not corrected.folder_of(0).exists()
    corrected.run()
    assert results(corrected) == [(0, 0.5)]


def test_options_may_change_after_an_interruption_before_any_result(opened: Open) -> None:
    with pytest.raises(KeyboardInterrupt):
        opened(KeyboardInterrupt()).run()
    changed = opened(0.5, space={"data.batch_size": [8]})
    changed.run()
    assert [trial.params for trial in changed.trials()] == [{"data.batch_size": 8}]


@pytest.mark.filterwarnings("ignore:BruteForceSampler is experimental")
def test_grid_that_is_tried_to_its_end_ends_the_search(opened: Open) -> None:
    brute_force = {"_target_": "optuna.samplers.BruteForceSampler"}
    search = opened(0.5, 0.5, num_trials=9, space={"a": [1, 2]}, sampler=brute_force)
    search.run()
    assert {trial.params["a"] for trial in search.trials()} == {1, 2}


def test_search_of_another_folder_is_not_shared_by_its_name(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_STORAGE", f"sqlite:///{tmp_path}/shared.db")
    opened(num_trials=1)
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is that of another folder: share that folder"):
        opened(num_trials=1)


def test_trials_that_the_storage_does_not_know_are_left_alone(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "mine/trials/3").mkdir(parents=True)
    with pytest.raises(UserError, match="move them away"):
        opened(num_trials=1)


def test_damaged_storage_is_one_sentence(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/search.db").write_bytes(b"no database " * 1000)
    refused = pytest.raises(UserError, match=r"search\.db cannot be used \(file is not a database\)")
    with refused, usable_storage(tmp_path / "mine"):
        opened(num_trials=1)


def test_locked_storage_is_one_sentence(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "DATABASE_TIMEOUT", 0.1)
    search = opened(num_trials=1)
    with sqlite3.connect(tmp_path / "mine/search.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        refused = pytest.raises(UserError, match=r"search\.db cannot be used \(database is locked\)")
        with refused, usable_storage(search.folder):
            search.run()
    other.close()


def test_storage_elsewhere_is_named_without_its_password(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_STORAGE", "nonsense://user:secret@host/name")
    refused = pytest.raises(UserError, match="SEARCH_STORAGE cannot be used")
    with refused as error, usable_storage(tmp_path):
        opened(num_trials=1)
    assert "secret" not in str(error.value)


def test_other_tools_of_optuna_read_the_storage(opened: Open, tmp_path: Path) -> None:
    opened(0.25).run()
    file = RDBStorage(f"sqlite:///{tmp_path}/mine/search.db", engine_kwargs={"poolclass": NullPool})
    loaded = optuna.load_study(study_name=None, storage=file)
    assert [(trial.state, trial.value) for trial in loaded.trials] == [(TrialState.COMPLETE, 0.25)]
