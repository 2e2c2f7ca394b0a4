"""A study of Optuna's that any number of processes share, and whose trials are trainings in processes of their own."""

import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..config import PACKAGE
from ..config.command_line import Config, compose, config_dirs, given_options_except
from ..config.validation import build, check_arguments, read_options
from ..console import shown
from ..distributed.plan import make_plan
from ..errors import UserError, first_of
from ..runs import run_record
from ..training.build import build_datamodule
from ..training.fine_tuning import with_starting_point
from ..training.options import TrainOptions
from .space import distributions, hydra_value, options, samples, short_names, suggest, to_text

log = logging.getLogger(__name__)

SEARCH_OPTIONS = ("search", "num_trials", "name", "task_name", "hydra")  # which `train` does not take
BATCH_SIZE = "data.batch_size"
SETTINGS, STARTED, FAILURE, PRUNED = "settings", "started", "failure", "pruned"  # attributes in the storage
UNLOGGED = "search.monitor="  # the beginning of a failure that every trial would meet
# Seconds between heartbeats, and since the last one until a trial counts as lost. A search that was killed goes on at
# once with other trials; only where none is left to run does it wait, for GRACE. A busy machine or a slow database may
# miss a heartbeat or two, but not five.
HEARTBEAT, GRACE = 2, 10
DATABASE_TIMEOUT = 20  # seconds to wait for a file that another process has locked
TERMINATION_TIMEOUT = 30  # seconds that a training has after SIGTERM
MAX_EQUAL_FAILURES = 3  # before any trial has a result


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/search.yaml`."""

    num_trials: int
    name: str

    def __post_init__(self) -> None:
        if self.num_trials < 1:
            raise UserError(f"num_trials={self.num_trials} is no search: give 1 or more.")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"name={self.name} is no name of a folder: take letters, digits, '_', '-' and '.'.")


@dataclass(frozen=True)
class Settings:
    """The section `search` of the configuration."""

    monitor: str
    mode: Literal["min", "max"]
    space: dict[str, Any]
    sampler: dict[str, Any]
    pruner: dict[str, Any] | None


class TrialFailed(Exception):
    """`optimize` marks the trial as failed and goes on with the next one."""


def open_search(config: Config) -> "Search":
    """Refuses every mistake that all trials would meet before the first one is run."""
    plain = read_options(config, Options)
    if config["resume"] is not None:
        raise UserError(f"resume={config['resume']} is for a training: a search goes on by its own command.")
    check_arguments(Settings, config["search"], "search")
    settings = read_options(config["search"], Settings, "search")
    space, train_options = distributions(settings.space), given_options_except(*SEARCH_OPTIONS)
    for option in space:
        if any(given.lstrip("+").partition("=")[0] == option for given in train_options):
            raise UserError(f"'{option}' is for the search to choose: leave it out, or take it out of search.space.")
    for number, sample in enumerate(samples(space)):
        try:
            sampled = compose("train", [*train_options, *options(sample, space)])
        except UserError as error:
            raise UserError(f"search.space: {error}") from error
        if number == 0:
            read_options(sampled, TrainOptions)
            make_plan(with_starting_point(sampled))
    build(settings.sampler, "search.sampler", seed=0)
    if settings.pruner:
        build(settings.pruner, "search.pruner")
    settings = replace(settings, space=without_too_large_batches(settings.space, train_options))
    folder = Path(config["paths"]["output_dir"])
    return Search(folder, settings, [*config_dirs(), *train_options], plain.num_trials, config["seed"])


def without_too_large_batches(space: dict[str, Any], train_options: list[str]) -> dict[str, Any]:
    """Drops sizes of a batch that are larger than the training split, which every trial with them would refuse."""
    asked: Any = space.get(BATCH_SIZE)
    sizes = asked if isinstance(asked, list) else [asked[end] for end in ("low", "high")] if asked else []
    if not sizes or not all(type(size) is int for size in sizes):
        return space
    smallest = compose("train", [*train_options, f"{BATCH_SIZE}={min(sizes)}"])
    try:
        datamodule = build_datamodule(smallest["data"], smallest["seed"])
        datamodule.prepare_data()
        datamodule.setup("fit")
        dataset = getattr(datamodule.train_dataloader(), "dataset", None)
    except UserError:
        raise
    except Exception:  # a DataModule of the owner may need a Trainer, which only a trial has
        return space
    if not isinstance(dataset, Sized) or max(sizes) <= (most := len(dataset)):
        return space
    if isinstance(asked, list):
        taken: Any = [size for size in asked if size <= most]
        dropped = first_of([str(size) for size in asked if size > most])
    else:
        low, step = asked["low"], asked.get("step") or 1
        taken = {**asked, "high": low + (most - low) // step * step}
        dropped = f"{taken['high'] + step} to {asked['high']}"
    log.warning("left out    %s of %s: there are %d training samples", dropped, BATCH_SIZE, most)
    return {**space, BATCH_SIZE: taken}


def open_storage(folder: str | Path, **heartbeat: Any) -> RDBStorage:
    """The database that `SEARCH_STORAGE` names, else a file in the folder of the search."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats and plots have been experimental since Optuna 2
    file = URL.create("sqlite", database=str(Path(folder, "search.db"))).render_as_string()
    url = os.environ.get("SEARCH_STORAGE") or file
    # Without a pool the file is closed after each use, not only when Python collects the connection.
    file_arguments = {"connect_args": {"timeout": DATABASE_TIMEOUT}, "poolclass": NullPool}
    try:
        return RDBStorage(url, engine_kwargs=file_arguments if url.startswith("sqlite") else {}, **heartbeat)
    except (ImportError, ValueError) as error:
        raise UserError(f"SEARCH_STORAGE cannot be used: {' '.join(str(error).split())}") from error


def open_study(folder: str | Path, storage: RDBStorage, mode: str = "min") -> optuna.Study:
    name, direction = f"{PACKAGE}/{Path(folder).name}", StudyDirection["MINIMIZE" if mode == "min" else "MAXIMIZE"]
    return optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)


@contextmanager
def usable_storage(folder: str | Path) -> Iterator[None]:
    """Turns the errors of a database that is locked, damaged or out of reach into one sentence."""
    try:
        yield
    except (SQLAlchemyError, OptunaError) as error:
        place = "SEARCH_STORAGE" if os.environ.get("SEARCH_STORAGE") else shown(Path(folder, "search.db"))
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(
            f"the search's storage {place} cannot be used ({' '.join(str(getattr(cause, 'orig', cause)).split())}): "
            "end what else holds it, restore it, or begin another search with name=<another>."
        ) from error


class Search:
    """The study of a folder. The folder of a trial is the run directory of its training."""

    def __init__(self, folder: Path, settings: Settings, command: list[str], num_trials: int, seed: int) -> None:
        self.folder, self.settings, self.command, self.seed = folder, settings, command, seed
        self.num_trials, self.is_taken_over = num_trials, False
        self.space = distributions(settings.space)
        self.names = short_names(self.space)
        train_options = sorted(option for option in command if not option.startswith("--config-dir="))
        heartbeat = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE}
        with FileLock(folder / ".search.lock"):  # of two processes that start at once, one creates the tables
            self.storage = open_storage(folder, heartbeat_stale_trial_callback=self._run_again, **heartbeat)
            self.study = open_study(folder, self.storage, settings.mode)
            self._begin_or_resume({"options": train_options, **vars(settings)})

    def _begin_or_resume(self, asked: dict[str, Any]) -> None:
        """Refuses other settings, whose trials could not be compared; where all trials failed, it begins anew."""
        identity, trials_folder = self.folder / ".search.id", self.folder / "trials"
        another = "or begin another search with name=<another>."
        began = self.study.user_attrs.get(SETTINGS)
        if began and (not identity.is_file() or identity.read_text(encoding="utf-8") != began["id"]):
            raise UserError(
                f"the search '{self.folder.name}' in this storage is that of another folder: "
                f"share that folder, {another}"
            )
        changed = {name: began.get(name) for name in asked if began.get(name) != asked[name]} if began else {}
        if changed and len(self.failures()) == len(self.trials()):
            optuna.delete_study(study_name=self.study.study_name, storage=self.storage)
            shutil.rmtree(trials_folder, ignore_errors=True)
            self.study, began, changed = open_study(self.folder, self.storage, self.settings.mode), None, {}
        for name, old in changed.items():
            before, now = (str(value).replace("'", "") for value in (old, asked[name]))
            raise UserError(
                f"the search '{self.folder.name}' began with {name}={before}, not {now}: "
                "type the same again to go on, or begin another with name=<another>."
            )
        if began is None:
            if trials_folder.exists() and any(trials_folder.glob("[0-9]*")):
                raise UserError(
                    f"{shown(trials_folder)} holds trials that the search's storage does not know: "
                    f"move them away, {another}"
                )
            identity.write_text(secrets.token_hex(), encoding="utf-8")
            self.study.set_user_attr(SETTINGS, {"id": identity.read_text(encoding="utf-8"), **asked})

    def run(self) -> None:
        """Runs trials until there are `num_trials`, those of other processes included."""
        try:
            if not self._is_complete():
                self.study.optimize(self._run_trial, catch=(TrialFailed,), callbacks=[self._after_trial])
        except ValueError as error:
            if not self.is_taken_over:
                raise
            raise UserError(
                f"this search stood still for more than {GRACE} s, and another process took its trial for lost: "
                "type the same command again to go on."
            ) from error

    def trials(self) -> list[FrozenTrial]:
        """The trials that count: neither those in the queue, nor those that ended without a result or a reason."""
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.state not in (TrialState.WAITING, TrialState.FAIL) or FAILURE in t.user_attrs]

    def failures(self) -> list[str]:
        return [trial.user_attrs[FAILURE] for trial in self.trials() if trial.state == TrialState.FAIL]

    def best_value(self, trial: FrozenTrial) -> float | None:
        values = [value for value in trial.intermediate_values.values() if value == value]  # without NaN
        return None if not values else min(values) if self.settings.mode == "min" else max(values)

    def folder_of(self, number: int) -> Path:
        return self.folder / "trials" / str(number)

    def _is_trained(self, number: int) -> bool:
        return (self.folder_of(number) / "metrics.json").is_file()

    def _is_complete(self) -> bool:
        self._fail_lost_trials()
        if len(self.trials()) < self.num_trials:
            return False
        if any(trial.state == TrialState.RUNNING for trial in self.trials()):
            time.sleep(GRACE + 1)  # only now can a trial that was lost a moment ago be told from a running one
            self._fail_lost_trials()
        return len(self.trials()) >= self.num_trials

    def _fail_lost_trials(self) -> None:
        fail_stale_trials(self.study)
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            # Optuna does not find a trial whose process was killed between its creation and its first heartbeat.
            age = datetime.now() - (trial.datetime_start or datetime.now())
            if STARTED not in trial.user_attrs and age.total_seconds() > GRACE:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                self._run_again(self.study, trial)

    def _run_again(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Queues the values of a lost trial, with its result if only its search did not come to store that."""
        is_trained = self._is_trained(trial.number)
        trial.user_attrs = {key: value for key, value in trial.user_attrs.items() if is_trained and key == PRUNED}
        RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=is_trained)(study, trial)

    def _run_trial(self, trial: optuna.Trial) -> float:
        """Optuna's objective: trains with the chosen options, and returns the best value of the monitored metric."""
        self.storage.record_heartbeat(trial._trial_id)  # Optuna's thread may not have come to it yet
        trial.set_user_attr(STARTED, True)
        position = sum(other.number < trial.number for other in self.trials()) + 1
        if position > self.num_trials:
            raise TrialFailed("another process began the last trial at the same moment")
        # Processes that began with the same random numbers would choose the same values.
        self.study.sampler = build(self.settings.sampler, "search.sampler", seed=(self.seed + trial.number) % 2**32)
        params = suggest(trial, self.space)
        chosen = "  ".join(f"{self.names[name]}={to_text(value, self.space[name])}" for name, value in params.items())
        log.info("trial %-6d%d of %d: %s", trial.number, position, self.num_trials, chosen)
        failure = self._train(trial, options(params, self.space))
        stored = self.study.get_trials()[trial.number]  # with what the training has reported
        if stored.state != TrialState.RUNNING:
            self.is_taken_over = True
            raise TrialFailed("another process took the trial for lost")
        value = self.best_value(stored)
        if failure is not None or value is None:
            failure = failure or f"{self.settings.monitor} was never a number."
            if failure.startswith(UNLOGGED):
                raise UserError(failure)
            trial.set_user_attr(FAILURE, failure)
            raise TrialFailed(failure)
        if PRUNED in stored.user_attrs:
            raise optuna.TrialPruned
        return value

    def _train(self, trial: optuna.Trial, chosen: list[str]) -> str | None:
        """Returns the reason of a failure."""
        folder, stored = self.folder_of(trial.number), self.study.get_trials()[trial.number]
        folder.parent.mkdir(exist_ok=True)
        for lost in RetryHeartbeatStaleTrialCallback.retry_history(stored)[-1:]:
            if self._is_trained(lost):
                self.folder_of(lost).rename(folder)
                return None
            shutil.rmtree(self.folder_of(lost), ignore_errors=True)
        folder.mkdir()
        trial_options = [
            "test=false",  # the test split must not choose the options
            *(["rehearse_export=false"] if trial.number else []),  # once is enough
            f"hydra.run.dir={hydra_value(str(folder))}",
            f"{run_record.SEARCH_OPTIONS}_target_={__package__}.pruning.PruningCallback",
            f"{run_record.SEARCH_OPTIONS}folder={hydra_value(str(self.folder))}",
            f"{run_record.SEARCH_OPTIONS}trial_id={trial._trial_id}",
        ]
        try:
            return train([*self.command, *chosen, *trial_options], folder / "output.txt")
        except KeyboardInterrupt:  # Ctrl-C and SIGTERM
            self._run_again(self.study, stored)
            raise

    def _after_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Says how the trial ended; ends the search once it is complete or hopeless."""
        value, failures = self.best_value(trial), self.failures()
        result = f"failed: {trial.user_attrs.get(FAILURE)}"
        if trial.state == TrialState.PRUNED:
            num_validations = trial.user_attrs[PRUNED]
            plural = "s" if num_validations > 1 else ""
            result = f"{self.settings.monitor} {value:.4g}, pruned after {num_validations} validation{plural}"
        elif trial.state == TrialState.COMPLETE:
            best = " (the best so far)" if study.best_trial.number == trial.number else ""
            result = f"{self.settings.monitor} {value:.4g}{best}"
        if trial.duration and trial in self.trials():
            log.info("            %s, after %.0f s", result, trial.duration.total_seconds())
        if len(failures) == len(self.trials()) >= MAX_EQUAL_FAILURES and len(set(failures)) == 1:
            raise UserError(f"all {len(failures)} trials failed, so the search has ended: {failures[0]}")
        if self._is_complete():
            study.stop()


def train(options: list[str], output: Path) -> str | None:
    """Runs the command `train` in a process of its own: a crash or full memory does not reach the next trial.

    Returns the reason of a failure. What the training prints goes to `output`.
    """
    command = [sys.executable, "-m", str(__package__), *options]
    with (
        output.open("w", encoding="utf-8") as stdout,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.STDOUT) as process,
    ):
        try:
            code = process.wait()
        finally:
            process.terminate()  # if the wait was interrupted
            try:
                process.wait(TERMINATION_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
    if code < 0:
        return f"ended by {signal.Signals(-code).name}."
    text = output.read_text(encoding="utf-8", errors="replace")
    errors, lines = re.findall(r"^error: (.*)$", text, re.MULTILINE), re.findall(r"\S.*", text)
    return None if code == 0 else [*errors, *lines[-1:], f"ended with exit code {code}."][0]
