"""Pictures of a run: the curves of its figures, and what the metrics of the test show."""

import csv
import inspect
import logging
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchmetrics import Metric

from ..errors import one_line

log = logging.getLogger(__name__)

CURVES = "curves.png"
# Okabe and Ito (2008): colours that the colour-blind can tell apart.
COLOURS = {"train": "#0072B2", "val": "#D55E00", "": "#009E73"}
PANELS_IN_ROW = 4

Series = tuple[list[int], list[float]]


def split_and_metric(name: str) -> tuple[str, str]:
    """The split `train`, `val` or `test` of a logged figure and its metric: both of `val/loss`, or of `val_loss`."""
    found = re.fullmatch(r"(train|val|test)[/_](.+)", name)
    return (found[1], found[2]) if found else ("", name)


def caption(picture: Path) -> str:
    if picture.name == CURVES:
        return "Figures of each epoch, of training and of validation"
    return f"{picture.stem.replace('_', ' ').capitalize()} of the test split"


def plot_curves(metrics_csv: Path, picture: Path, best_epoch: int | None = None) -> None:
    """Plots one panel per metric, training and validation together, from the logger's `metrics.csv`.

    `best_epoch`, counted from 1, is that of the best checkpoint.
    """
    panels: dict[str, dict[str, Series]] = defaultdict(dict)
    epoch = ""
    with metrics_csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in reversed(rows):
        epoch = row.pop("epoch", "") or epoch  # what is logged without one, as the learning rate, comes before it
        for column, value in row.items():
            split, metric = split_and_metric(column)
            if column != "step" and value and epoch and split in COLOURS:
                epochs, values = panels[metric].setdefault(split, ([], []))
                epochs.insert(0, int(epoch) + 1)
                values.insert(0, float(value))
    if not panels:  # a dry run logs nothing
        return
    # Losses first, what belongs to no split last.
    names = sorted(panels, key=lambda name: ("" in panels[name], "loss" not in name, name))
    num_columns, num_rows = min(len(names), PANELS_IN_ROW), math.ceil(len(names) / PANELS_IN_ROW)
    figure = Figure(figsize=(4.5 * num_columns, 3.6 * num_rows), layout="constrained")
    for place, name in enumerate(names, start=1):
        _plot_panel(figure.add_subplot(num_rows, num_columns, place), name, panels[name], best_epoch)
    figure.savefig(picture, dpi=120)


def _plot_panel(axes: Axes, metric: str, series: dict[str, Series], best_epoch: int | None) -> None:
    for split, (epochs, values) in sorted(series.items()):  # train before val
        axes.plot(epochs, values, color=COLOURS[split], marker="o", markersize=3, label=split or None)
    if "loss" in metric and all(value > 0 for _, values in series.values() for value in values):
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if best_epoch is not None and any(series):
        axes.axvline(best_epoch, color="#555555", linestyle=":", linewidth=1.2, label=f"best, epoch {best_epoch}")
    if any(series):
        axes.legend()


class MetricPlots(Callback):
    """Plots every metric of a test whose value is more than a number, such as a confusion matrix, by its own `plot()`.

    A picture lies in the Trainer's folder under the name of the module's attribute.
    """

    def __init__(self) -> None:
        self.plotted: dict[str, tuple[Metric, Any]] = {}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = _metrics(pl_module)
        # All ranks compute the same metrics, because they wait for each other; one may have had no sample.
        counts = torch.tensor([metric.update_count for metric in metrics.values()], device=pl_module.device)
        used = trainer.strategy.reduce(counts, reduce_op="max").tolist() if metrics else []
        for (name, metric), num_updates in zip(metrics.items(), used, strict=True):
            if num_updates:
                value = metric.compute()
                if not isinstance(value, Tensor) or value.numel() > 1:
                    self.plotted[name] = metric, value

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        labels = getattr(getattr(pl_module, "spec", None), "labels", ())
        for name, (metric, value) in self.plotted.items():
            if trainer.is_global_zero:
                try:
                    _plot(metric, value, labels, Path(trainer.default_root_dir, f"{name}.png"))
                except Exception as error:  # a metric may have no plot, or one that does not fit its value
                    log.warning("warning     the metric %s cannot be plotted: %s", name, one_line(error))
            metric.reset()  # Lightning resets those alone that were logged
        self.plotted = {}


def _metrics(module: torch.nn.Module) -> Mapping[str, Metric]:
    """The metrics of a module by the names of their attributes, without the parts of another metric."""
    found: dict[str, Metric] = {}
    for name, part in module.named_modules():
        if isinstance(part, Metric) and not any(name.startswith(f"{other}.") for other in found):
            found[name] = part
    return found


def _plot(metric: Metric, value: Any, labels: tuple[str, ...], picture: Path) -> None:
    taken = inspect.signature(metric.plot).parameters
    options: dict[str, Any] = {"cmap": "Blues"} if "cmap" in taken else {}
    if labels and "labels" in taken:
        options["labels"] = [label.replace("$", r"\$") for label in labels]  # a dollar sign would open a formula
    figure, _ = metric.plot(value, **options)
    if "labels" in options:
        size = min(30.0, max(5.0, 0.5 * len(labels) + 2))
        figure.set_size_inches(size, size)
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    plt.close(figure)
