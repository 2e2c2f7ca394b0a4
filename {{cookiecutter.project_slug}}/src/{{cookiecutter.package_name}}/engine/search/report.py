"""What a search has shown: a table of all trials, one of the best, a picture, and the best trial's command."""

import csv
import logging
import shlex
from collections import Counter
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.table import Table

from ..console import python, shown, wide_console
from ..errors import UserError
from .plots import plot_search
from .space import figure, options, rounded, short_names
from .storage import PACKAGE
from .study import FAILED, Search

log = logging.getLogger(__name__)

WORDS = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running elsewhere",
}
SHOWN = 5  # trials in the table


def report_search(search: Search, of_all: list[str]) -> None:
    """Writes `trials.csv` and `search.png`; refuses a search without a result."""
    trials = search.trials()
    write_table(search, trials, search.folder / "trials.csv")
    counts = Counter(WORDS[trial.state] for trial in trials)
    log.info("trials      %d: %s", len(trials), ", ".join(f"{counts[w]} {w}" for w in WORDS.values() if counts[w]))
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not finished:
        raise UserError(f"no trial came to a result: {(search.failures() or ['all were pruned'])[0]}")
    finished.sort(key=lambda trial: trial.value or 0.0, reverse=search.settings.choose is max)
    best = finished[0]
    plot_search(trials, search.space, search.settings, search.folder / "search.png")
    wide_console().print(_table(finished[:SHOWN], search))
    log.info("best        trial %d, %s %.4g", best.number, search.settings.monitor, best.value)
    log.info("table       %s, and search.png beside it", shown(search.folder / "trials.csv"))
    checkpoint = search.folder_of(best.number) / "checkpoints/best.ckpt"
    command = shlex.join([python(), "-m", PACKAGE, "train", *of_all, *options(best.params, search.space)])
    log.info("next        %s", command)
    log.info("            %s -m %s evaluate ckpt_path=%s", python(), PACKAGE, shown(checkpoint))


def write_table(search: Search, trials: list[FrozenTrial], path: Path) -> None:
    """A row a trial: its state, its best figure, how many validations it had, why it failed, its options."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", search.settings.monitor, "validations", "seconds", "failure", *search.space])
        for trial in trials:
            seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
            value = search.settings.best(trial.intermediate_values.values())
            failure = search.study.user_attrs.get(f"{FAILED} {trial.number}", "")
            head = [trial.number, WORDS[trial.state], value, len(trial.intermediate_values), seconds, failure]
            chosen = [rounded(trial.params[option], kind) for option, kind in trial.distributions.items()]
            writer.writerow([*head, *chosen])


def _table(trials: list[FrozenTrial], search: Search) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("trial", search.settings.monitor, *short_names(search.space).values()):
        table.add_column(heading, justify="right", overflow="fold")
    for trial in trials:
        chosen = [figure(trial.params[option]) for option in search.space]
        table.add_row(str(trial.number), figure(trial.value), *chosen)
    return table
