"""The report of a search: a table of all trials, one of the best, a picture, and the command of the best trial."""

import csv
import logging
import shlex
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization.matplotlib import plot_intermediate_values, plot_optimization_history, plot_slice
from rich import box
from rich.table import Table

from ..config import PACKAGE
from ..console import python, shown, wide_console
from ..errors import UserError
from .space import options, to_text
from .study import FAILURE, Search

log = logging.getLogger(__name__)

WORDS = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running elsewhere",
}
NUM_BEST = 5  # trials in the table of the best
NUM_COLUMNS = 4  # options in a row of the picture


def report_search(search: Search) -> None:
    """Writes `trials.csv` and `search.png`; refuses a search without a result."""
    trials, monitor = search.trials(), search.settings.monitor
    write_table(search, trials, search.folder / "trials.csv")
    counts = Counter(WORDS[trial.state] for trial in trials)
    log.info("trials      %d: %s", len(trials), ", ".join(f"{counts[w]} {w}" for w in WORDS.values() if counts[w]))
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not finished:
        raise UserError(f"no trial came to a result: {(search.failures() or ['all were pruned'])[0]}")
    finished.sort(key=lambda trial: trial.value or 0.0, reverse=search.settings.mode == "max")
    plot_search(search, search.folder / "search.png")
    table = Table("trial", monitor, *search.names.values(), box=box.SIMPLE_HEAD, pad_edge=False)
    for trial in finished[:NUM_BEST]:
        table.add_row(str(trial.number), f"{trial.value:.4g}", *_chosen(trial, search))
    for column in table.columns:
        column.justify, column.overflow = "right", "fold"
    wide_console().print(table)
    best = finished[0]
    log.info("best        trial %d, %s %.4g", best.number, monitor, best.value)
    log.info("table       %s, and search.png beside it", shown(search.folder / "trials.csv"))
    command = shlex.join([python(), "-m", PACKAGE, "train", *search.command, *options(best.params, search.space)])
    log.info("next        %s", command)
    checkpoint = search.folder_of(best.number) / "checkpoints/best.ckpt"
    log.info("            %s -m %s evaluate ckpt_path=%s", python(), PACKAGE, shown(checkpoint))


def write_table(search: Search, trials: list[FrozenTrial], path: Path) -> None:
    """One row for each trial: state, best value, number of validations, seconds, reason of a failure, options."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", search.settings.monitor, "validations", "seconds", "failure", *search.space])
        for trial in trials:
            seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
            value, failure = search.best_value(trial), trial.user_attrs.get(FAILURE, "")
            head = [trial.number, WORDS[trial.state], value, len(trial.intermediate_values), seconds, failure]
            writer.writerow([*head, *_chosen(trial, search)])


def _chosen(trial: FrozenTrial, search: Search) -> list[str]:
    return [to_text(trial.params[name], kind) for name, kind in search.space.items() if name in trial.params]


def plot_search(search: Search, picture: Path) -> None:
    """Stacks Optuna's plots, each of which is a figure of its own; a cross at the top is a trial that failed."""
    study, monitor, params = search.study, search.settings.monitor, sorted(search.space)  # the order of `plot_slice`
    failed = [trial for trial in search.trials() if trial.state == TrialState.FAIL]
    logging.getLogger("matplotlib.category").setLevel(logging.WARNING)  # numbers as choices are what is meant
    plt.switch_backend("agg")  # no window
    # A dollar in the name of an option or a choice is no formula.
    style: Any = {"figure.constrained_layout.use": True, "text.parse_math": False}
    with plt.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an option that has the same value in all trials
        history, values = plot_optimization_history(study, target_name=monitor), plot_intermediate_values(study)
        history.set(title="Finished trials", xlabel="trial")
        _mark_failed(history, [trial.number for trial in failed])
        history.legend(loc="best")
        for axes in (history, values):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlim(-0.5, max(axes.dataLim.x1, 0) + 0.5)
        values.set(title="Every trial, pruned ones included", xlabel="validation", ylabel=monitor)
        if all(np.min(np.asarray(line.get_ydata())) > 0 for line in values.lines):
            values.set_yscale("log")
        if legend := values.get_legend():
            legend.remove()
        rows = [[history.figure, values.figure]]
        for start in range(0, len(params), NUM_COLUMNS):
            panels = plot_slice(study, params[start : start + NUM_COLUMNS], target_name=monitor)
            slices = np.ravel(np.asarray(panels))
            for option, axes in zip(params[start:], slices, strict=False):
                axes.set(xlabel=search.names[option], title="")
                axes.tick_params("x", rotation=30)
                _show_space(axes, search.space[option], [trial.params[option] for trial in failed])
            slices[0].figure.suptitle("")
            slices[0].figure.axes[-1].yaxis.set_major_locator(MaxNLocator(integer=True))  # of the numbers of trials
            rows.append([slices[0].figure])
        plt.imsave(picture, np.vstack([np.hstack([_pixels(figure, len(row)) for figure in row]) for row in rows]))


def _show_space(axes: Any, kind: BaseDistribution, failed: list[Any]) -> None:
    """Shows the whole range of an option, however few trials there were."""
    if isinstance(kind, FloatDistribution | IntDistribution):
        margin = 0.04 * (kind.high - kind.low)
        limits = (kind.low / 1.1, kind.high * 1.1) if kind.log else (kind.low - margin, kind.high + margin)
        axes.set_xlim(*limits)
        if not kind.log:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=isinstance(kind, IntDistribution)))
    else:
        failed = [str(choice) for choice in failed]
    _mark_failed(axes, failed)


def _mark_failed(axes: Any, places: list[Any]) -> None:
    if places:
        height = [0.96] * len(places)  # of the panel: they have no value
        axes.scatter(places, height, marker="x", color="tab:red", label="failed", transform=axes.get_xaxis_transform())


def _pixels(figure: Any, num_figures: int) -> Any:
    """Renders one of the figures that share a row."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    figure.set(size_inches=(14 / num_figures, 4), dpi=100, layout_engine="constrained")
    figure.canvas.draw()
    pixels = np.array(figure.canvas.buffer_rgba())
    plt.close(figure)
    return pixels
