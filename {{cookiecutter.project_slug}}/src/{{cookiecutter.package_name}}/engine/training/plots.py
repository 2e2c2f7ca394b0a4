"""Pictures of a run: its curves, and its predictions for the test samples."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .base_module import BaseModule

# By task: the file and its caption.
PICTURES = {
    "classification": ("confusion_matrix.png", "Confusion matrix of the test split: rows are the true labels"),
    "multilabel": ("labels.png", "Each label in the test split: found, missed, and said of others"),
    "regression": ("predicted.png", "Predictions beside the truth in the test split"),
}

# Okabe and Ito (2008): colours that the colour-blind can tell apart.
COLOURS = {"train": "#0072B2", "val": "#D55E00"}
LOSSES = {"classification": "cross entropy (nats)", "multilabel": "binary cross entropy (nats)", "regression": "loss"}
NAMES = {
    "acc": "accuracy",
    "f1": "macro F1",
    "r2": "R2",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
}
WIDEST = 3.0  # deviations of the target to both sides, in the picture of a regression

Series = tuple[list[int], list[float]]
Counts = npt.NDArray[np.int64]


def plot_curves(metrics_csv: Path, picture: Path, loss: str) -> None:
    """Plots one panel per metric, training and validation together, from the logger's `metrics.csv`."""
    panels: dict[str, dict[str, Series]] = defaultdict(dict)
    with metrics_csv.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for column, value in row.items():
                split, _, metric = column.partition("/")
                if split in COLOURS and value:
                    epochs, values = panels[metric].setdefault(split, ([], []))
                    epochs.append(int(row["epoch"]) + 1)
                    values.append(float(value))
    if not panels:  # a dry run logs nothing
        return
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for position, (metric, series) in enumerate(sorted(panels.items(), key=lambda panel: panel[0] != "loss")):
        _plot_panel(figure.add_subplot(1, len(panels), position + 1), metric, series, loss)
    figure.savefig(picture, dpi=120)


def _plot_panel(axes: Axes, metric: str, series: dict[str, Series], loss: str) -> None:
    for split, (epochs, values) in sorted(series.items()):  # train before val
        axes.plot(epochs, values, color=COLOURS[split], marker="o", markersize=3, label=split)
    if metric == "loss":
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel(loss if metric == "loss" else NAMES.get(metric, metric))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def plot_test(model: BaseModule, folder: Path) -> None:
    """Plots the predictions for the test split, from the counts that a test leaves in the module."""
    assert model.counts is not None
    counts, spec = model.counts.cpu().numpy(), model.spec
    labels = [label.replace("$", r"\$") for label in spec.labels]  # a dollar sign would open a formula
    if spec.task == "classification":
        figure = _confusion_matrix(counts, labels)
    elif spec.task == "multilabel":
        figure = _label_bars(counts, labels)
    else:
        figure = _predicted_by_true(counts, spec.target, spec.target_mean, spec.target_std)
    figure.savefig(folder / PICTURES[spec.task][0], dpi=120)


def _confusion_matrix(counts: Counts, labels: list[str]) -> Figure:
    """`counts` is `(K, K)`, rows the true labels; an empty cell is a zero."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = max(4.0, 0.45 * len(labels) + 1.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=0 if max(map(len, labels)) <= 3 else 90)
    axes.set_yticks(ticks, labels)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    axes.set_title(f"{np.trace(counts)} of {counts.sum()} test samples right")
    return figure


def _label_bars(counts: Counts, labels: list[str]) -> Figure:
    """`counts` is `(K, 2, 2)`: for each label the samples without and with it, by the prediction."""
    found, missed, wrong = counts[:, 1, 1], counts[:, 1, 0], counts[:, 0, 1]
    places = np.arange(len(labels))
    figure = Figure(figsize=(7, max(2.5, 0.4 * len(labels) + 1.5)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(places, found, color="#0072B2", label="found")
    axes.barh(places, missed, left=found, color="#BBBBBB", label="missed")
    axes.barh(places, -wrong, color="#D55E00", label="said of others")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlabel("test samples")
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def _predicted_by_true(counts: Counts, target: str, mean: float, std: float) -> Figure:
    """`counts` is `(B, B)`: samples by their true value (rows) and their prediction, 3 deviations to both sides."""
    low, high = mean - WIDEST * std, mean + WIDEST * std
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    shown = np.ma.masked_equal(counts.T, 0)  # the true value goes to the right
    image = axes.imshow(shown, origin="lower", extent=(low, high, low, high), cmap="viridis_r", aspect="auto")
    axes.plot([low, high], [low, high], color="#D55E00", linewidth=1, label="predicted = true")
    figure.colorbar(image, ax=axes, label="test samples", ticks=MaxNLocator(integer=True))
    name = target.replace("$", r"\$")
    axes.set_xlabel(f"true {name}")
    axes.set_ylabel(f"predicted {name}")
    axes.legend(loc="upper left", frameon=False)
    return figure
