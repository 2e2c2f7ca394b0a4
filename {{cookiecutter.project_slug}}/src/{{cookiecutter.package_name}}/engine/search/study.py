"""A search in its folder, shared by any number of processes: which trials there are, and whose turn is next."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from ..config.instantiation import build
from ..console import shown
from ..errors import UserError
from ..runs.run_record import SEARCH_OPTIONS, is_locked
from .space import Space, word
from .storage import LOCK, open_study, refuse_another_folder, usable_storage

SETTINGS, LOST, PRUNED, FAILED, UNLOGGED = "settings", "lost", "pruned", "failed", "unlogged"  # notes in it


@dataclass(frozen=True)
class Settings:
    """The section `search` of the configuration."""

    monitor: str
    mode: Literal["min", "max"]
    space: dict[str, Any]
    sampler: dict[str, Any]
    pruner: dict[str, Any] | None

    @property
    def choose(self) -> Callable[..., Any]:
        """`min` or `max`."""
        return min if self.mode == "min" else max

    def best(self, values: Iterable[float]) -> float | None:
        """Of those that are numbers; None where there are none."""
        best: float | None = self.choose((value for value in values if value == value), default=None)
        return best


class Search:
    """Trials are claimed under a lock, and a lock is held for each while it runs: one that nobody holds was lost."""

    def __init__(self, folder: Path, settings: Settings, space: Space, options: list[str], seed: int) -> None:
        self.folder, self.settings, self.space, self.seed = folder, settings, space, seed
        self.claiming = FileLock(folder / LOCK)
        self.held: FileLock | None = None
        self.exhausted = False
        with usable_storage(folder), self.claiming:  # of two at once, one makes the tables
            self.study = open_study(folder, settings.mode)
            refuse_another_folder(folder, self.study)
            self._begin_or_go_on({"options": sorted(options), **vars(settings)})
        self.study.stop = self._exhaust  # type: ignore[method-assign]  # what a sampler of a grid calls at its end

    def _exhaust(self) -> None:
        self.exhausted = True

    def _begin_or_go_on(self, asked: dict[str, Any]) -> None:
        """Trials of different options must not be compared; where all have failed, there is nothing to compare."""
        began = self.study.user_attrs.get(SETTINGS)
        if began not in (None, asked) and not self.has_begun():
            optuna.delete_study(study_name=self.study.study_name, storage=self.study._storage)
            shutil.rmtree(self.folder / "trials", ignore_errors=True)
            self.study, began = open_study(self.folder, self.settings.mode), None
            refuse_another_folder(self.folder, self.study)
        if began is None:
            left = self.folder / "trials"
            if left.exists() and any(left.glob("[0-9]*")):
                raise UserError(
                    f"{shown(left)} holds trials that the search's storage does not know: move them away, "
                    "or begin another search with name=<another>."
                )
            self.study.set_user_attr(SETTINGS, asked)
            return
        for name in asked:
            if began.get(name) != asked[name]:
                raise UserError(
                    f"the search '{self.folder.name}' began with {name}={_words(began.get(name))}, not "
                    f"{_words(asked[name])}: type the same again to go on, or begin another with name=<another>."
                )

    def trials(self) -> list[FrozenTrial]:
        """Those that count: not the lost ones, and not what waits to be run in their place."""
        with usable_storage(self.folder):
            lost = self.study.user_attrs.get(LOST, [])
            trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.number not in lost and trial.state != TrialState.WAITING]

    def claim(self, num_trials: int) -> optuna.Trial | None:
        """The next trial, its options chosen; None when `num_trials` were finished or are running elsewhere."""
        with usable_storage(self.folder), self.claiming:
            running = [trial.number for trial in self.trials() if trial.state == TrialState.RUNNING]
            for number in running:
                if not is_locked(self.folder_of(number) / LOCK):
                    self.give_back(number)
            if self.exhausted or len(self.trials()) >= num_trials:
                return None
            # Processes that began with the same random numbers would choose the same.
            seed = (self.seed + len(self.study.get_trials(deepcopy=False))) % 2**32
            self.study.sampler = build(self.settings.sampler, "search.sampler", seed=seed)
            trial = self.study.ask(self.space)
            self.folder_of(trial.number).mkdir(parents=True)
            self.held = FileLock(self.folder_of(trial.number) / LOCK)
            self.held.acquire()
            return trial

    def give_back(self, number: int) -> None:
        """A trial that did not come to its end: what it had chosen is tried again, as another trial.

        One that did, while its search was ended before it could say so, is finished.
        """
        with usable_storage(self.folder), self.claiming:
            trial = self.study.get_trials(deepcopy=False)[number]
            if trial.state != TrialState.RUNNING:
                return
            if (self.folder_of(number) / "metrics.json").is_file() and UNLOGGED not in trial.user_attrs:
                self.finish(number, failure=None)
                return
            self.study.set_user_attr(LOST, sorted({*self.study.user_attrs.get(LOST, []), number}))
            self.study.tell(number, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params)
            shutil.rmtree(self.folder_of(number), ignore_errors=True)

    def options_of(self, trial: optuna.Trial) -> list[str]:
        """Those that make a training this trial: where it runs, whom it tells, and that the test split stays unseen."""
        return [
            "test=false",
            *(["rehearse_export=false"] if trial.number else []),  # once is enough
            f"hydra.run.dir={word(str(self.folder_of(trial.number)))}",
            f"{SEARCH_OPTIONS}_target_={__package__}.report.Report",
            f"{SEARCH_OPTIONS}folder={word(str(self.folder))}",
            f"{SEARCH_OPTIONS}trial_id={trial._trial_id}",
        ]

    def finish(self, number: int, failure: str | None) -> str:
        """Marks the trial, and says how it ended; `failure` is why it came to no figure that could be compared."""
        monitor = self.settings.monitor
        with usable_storage(self.folder), self.claiming:
            trial = self.study.get_trials(deepcopy=False)[number]
            if trial.state != TrialState.RUNNING:
                return "was finished by another process"
            value = self.settings.best(trial.intermediate_values.values())
            if failure is None and value is None:
                failure = f"{monitor} was never a number."
            if failure is not None:
                self.study.set_user_attr(f"{FAILED} {number}", failure)
                self.study.tell(number, state=TrialState.FAIL)
                return f"failed: {failure}"
            if PRUNED in trial.user_attrs:
                self.study.tell(number, state=TrialState.PRUNED)
                num_validations = trial.user_attrs[PRUNED]
                return f"{monitor} {value:.4g}, pruned after {num_validations} validation{'s' * (num_validations > 1)}"
            self.study.tell(number, value)
            best = " (the best so far)" if self.study.best_trial.number == number else ""
            return f"{monitor} {value:.4g}{best}"

    def notes(self, number: int) -> dict[str, Any]:
        with usable_storage(self.folder):
            return self.study.get_trials(deepcopy=False)[number].user_attrs

    def release(self) -> None:
        assert self.held is not None
        self.held.release()
        Path(self.held.lock_file).unlink(missing_ok=True)

    def failures(self) -> list[str]:
        """Why trials failed, the earliest first."""
        with usable_storage(self.folder):
            notes = self.study.user_attrs
        return [notes[f"{FAILED} {trial.number}"] for trial in self.trials() if f"{FAILED} {trial.number}" in notes]

    def has_begun(self) -> bool:
        """Whether a trial has a result, or may come to one."""
        return any(trial.state != TrialState.FAIL for trial in self.trials())

    def folder_of(self, number: int) -> Path:
        return self.folder / "trials" / str(number)


def _words(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
