"""Search for better options: trainings, each a trial, whose options Optuna chooses from what earlier ones have shown.

    python -m <package> search num_trials=50
    python -m <package> search search=mine num_trials=50 trainer.max_epochs=10
    python -m <package> search num_trials=50 strategy=ddp trainer.devices=4

The same command goes on with a search that was ended; started twice, both processes share its trials.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.command_line import Config, command, compose, config_dirs, typed_but
from ..errors import UserError

if TYPE_CHECKING:
    from .space import Space
    from .study import Search

log = logging.getLogger(__name__)

OWN = ("search", "num_trials", "name", "task_name", "hydra")  # options that are not of a trial
HOPELESS = 3  # failures alike, before any trial has a result


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


@command("search", needs=("data", "model", "trainer", "strategy", "paths", "search"))
def main(config: Config) -> None:
    from ..config.instantiation import build
    from ..config.validation import check_arguments, read_options
    from .report import report_search
    from .space import distributions
    from .study import Search, Settings

    options = read_options(config, Options)
    if config["resume"] is not None:
        raise UserError(f"resume={config['resume']} is for a training: a search goes on by its own command.")
    check_arguments(Settings, config["search"], "search")
    settings = read_options(config["search"], Settings, "search")
    space, of_all = distributions(settings.space), typed_but(*OWN)
    refuse_mistakes(space, of_all)
    build(settings.sampler, "search.sampler", seed=0)
    if settings.pruner:
        build(settings.pruner, "search.pruner")
    search = Search(Path(config["paths"]["output_dir"]), settings, space, of_all, config["seed"])
    command_line = [*config_dirs(), *of_all]
    run_trials(search, command_line, options.num_trials)
    report_search(search, command_line)


def refuse_mistakes(space: Space, of_all: list[str]) -> None:
    """Those that every trial would meet, before there is one."""
    from ..config.validation import read_options
    from ..distributed.plan import make_plan
    from ..training.fine_tuning import with_starting_point
    from ..training.options import TrainOptions
    from .space import options, samples

    for option in space:
        if any(re.split("=", given.lstrip("+"), maxsplit=1)[0] == option for given in of_all):
            raise UserError(f"'{option}' is for the search to choose: leave it out, or take it out of search.space.")
    for number, choice in enumerate(samples(space)):
        try:
            config = compose("train", [*of_all, *options(choice, space)])
        except UserError as refusal:
            raise UserError(f"search.space: {refusal}") from refusal
        if number == 0:
            read_options(config, TrainOptions)
            make_plan(with_starting_point(config))


def run_trials(search: Search, of_all: list[str], num_trials: int) -> None:
    """Until there are `num_trials`, those of other processes counted; a trial that fails is marked, and left."""
    from .space import brief, options, short_names
    from .study import UNLOGGED
    from .trial_process import train

    names = short_names(search.space)
    while (trial := search.claim(num_trials)) is not None:
        start, position = time.monotonic(), len(search.trials())
        log.info("trial %-6d%d of %d: %s", trial.number, position, num_trials, brief(trial.params, names))
        try:
            chosen = [*options(trial.params, search.space), *search.options_of(trial)]
            failure = train([*of_all, *chosen], search.folder_of(trial.number))
            if unlogged := search.notes(trial.number).get(UNLOGGED):
                raise UserError(f"search.monitor={unlogged}")
            result = search.finish(trial.number, failure)
        except BaseException:
            search.give_back(trial.number)
            raise
        finally:
            search.release()
        log.info("            %s, after %.0f s", result, time.monotonic() - start)
        failures = search.failures()
        if len(failures) >= HOPELESS and len(set(failures)) == 1 and not search.has_begun():
            raise UserError(f"all {len(failures)} trials failed, so the search has ended: {failures[0]}")


if __name__ == "__main__":
    main()
