"""A picture of a search: how it got better, and the figure beside each of the options."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from .space import Choice, Space, word
from .study import Settings

# Okabe and Ito (2008): the colour-blind can tell them apart. Of pruned ones the circle is empty.
FINISHED, PRUNED, BEST = "#0072B2", "#999999", "#D55E00"
COLUMNS = 3
LONG = 12  # letters of a choice

Shown = list[tuple[FrozenTrial, float]]


def plot_search(trials: list[FrozenTrial], space: Space, settings: Settings, picture: Path) -> None:
    """Trials that failed are left out: they have no figure."""
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    shown = [(t, value) for t in ended if (value := settings.best(t.intermediate_values.values())) is not None]
    num_rows = -(-(len(space) + 1) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.4 * num_rows + 0.4), layout="constrained")
    grid = figure.subplots(num_rows, COLUMNS, squeeze=False, sharey=True).flatten()
    finished = [pair for pair in shown if pair[0].state == TrialState.COMPLETE]
    winner = settings.choose(finished, key=lambda pair: pair[1])
    _plot_history(grid[0], shown, settings)
    _ring(grid[0], winner[0].number, winner[1])
    for axes, (option, distribution) in zip(grid[1:], space.items(), strict=False):
        _plot_option(axes, shown, winner, option, distribution)
    values = [value for _, value in shown]
    if min(values) > 0 and max(values) > 5 * min(values):
        grid[0].set_yscale("log")
    for number, axes in enumerate(grid):
        axes.set_visible(number <= len(space))
        axes.grid(alpha=0.3)
        if number % COLUMNS == 0:
            axes.set_ylabel(f"{settings.monitor} at best ({'low' if settings.mode == 'min' else 'high'} is good)")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(picture, dpi=120)


def _plot_history(axes: Axes, shown: Shown, settings: Settings) -> None:
    for state, name in ((TrialState.COMPLETE, "finished"), (TrialState.PRUNED, "pruned")):
        of_state = [(trial.number, value) for trial, value in shown if trial.state == state]
        _points(axes, of_state, state, name)
    finished = [(trial.number, value) for trial, value in shown if trial.state == TrialState.COMPLETE]
    numbers, values = zip(*finished, strict=True)
    running = np.minimum.accumulate(values) if settings.mode == "min" else np.maximum.accumulate(values)
    axes.step(numbers, running, where="post", color=BEST, label="the best so far")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plot_option(
    axes: Axes, shown: Shown, winner: tuple[FrozenTrial, float], option: str, distribution: BaseDistribution
) -> None:
    places: dict[Choice, float] = {}
    if isinstance(distribution, CategoricalDistribution):
        places = {choice: place for place, choice in enumerate(distribution.choices)}
        names = [word(choice).replace("$", r"\$") for choice in distribution.choices]
        axes.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > LONG else 0)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif getattr(distribution, "log", False):
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=isinstance(distribution, IntDistribution)))
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        chosen = [(trial.params[option], value) for trial, value in shown if trial.state == state]
        _points(axes, [(places.get(choice, choice), value) for choice, value in chosen], state)
    choice = winner[0].params[option]
    _ring(axes, places.get(choice, choice), winner[1])
    axes.set_xlabel(option.replace("$", r"\$"))


def _ring(axes: Axes, across: float, value: float) -> None:
    axes.scatter([across], [value], s=120, facecolors="none", edgecolors=BEST, linewidths=1.8, label="the best")


def _points(axes: Axes, points: Sequence[tuple[float, float]], state: TrialState, name: str | None = None) -> None:
    if not points:
        return
    across, values = zip(*points, strict=True)
    colour = FINISHED if state == TrialState.COMPLETE else PRUNED
    face = colour if state == TrialState.COMPLETE else "none"
    axes.scatter(across, values, s=28, facecolors=face, edgecolors=colour, label=name)
