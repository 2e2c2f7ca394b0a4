"""The pictures of a run. Colours are Okabe and Ito's (2008), which the colour-blind can tell apart."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

COLOURS = {"train": "#0072B2", "val": "#D55E00"}
NAMES = {"loss": "cross entropy (nats)", "acc": "accuracy", "f1": "macro F1"}

Series = tuple[list[int], list[float]]


def plot_curves(metrics_csv: Path, picture: Path) -> None:
    """One panel a metric, training and validation together, from the logger's `metrics.csv`."""
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
        _plot_panel(figure.add_subplot(1, len(panels), position + 1), metric, series)
    figure.savefig(picture, dpi=120)


def _plot_panel(axes: Axes, metric: str, series: dict[str, Series]) -> None:
    for split, (epochs, values) in sorted(series.items()):  # train before val
        axes.plot(epochs, values, color=COLOURS[split], marker="o", markersize=3, label=split)
    if metric == "loss":
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel(NAMES.get(metric, metric))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def plot_confusion_matrix(matrix: Tensor, labels: tuple[str, ...], picture: Path) -> None:
    """`matrix` is `(K, K)`, counts of samples, rows the true labels; an empty cell is a zero."""
    counts = matrix.cpu().numpy()
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
    figure.savefig(picture, dpi=120)
