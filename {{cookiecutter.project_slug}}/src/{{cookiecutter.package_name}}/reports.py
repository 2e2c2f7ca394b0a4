"""What a run says at its start and leaves behind at its end: lines, tables and pictures."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .cli import Config
from .models.classifier import Classifier
from .strategies.devices import Devices
from .strategies.samplers import BatchSplit
from .terminal import python, shown, write_json

if TYPE_CHECKING:
    from .exporters.gate import Parity

log = logging.getLogger(__name__)

PACKAGE = __name__.split(".")[0]
# Okabe and Ito (2008): the colour-blind can tell them apart.
COLOURS = {"train": "#0072B2", "val": "#D55E00"}
NAMES = {"loss": "cross entropy (nats)", "acc": "accuracy", "f1": "macro F1"}

Series = tuple[list[int], list[float]]


def announce(config: Config, devices: Devices, split: BatchSplit, model: Classifier) -> None:
    """Before the first step: what is trained, where, how a batch is split, and the learning rate."""
    num_weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    num_frozen = sum(weight.numel() for weight in model.parameters()) - num_weights
    of_all = f"{num_weights:,} of {num_weights + num_frozen:,}" if num_frozen else f"{num_weights:,}"
    strategy = config["strategy"]["name"]
    log.info("training    %s weights, strategy=%s on %s", of_all, strategy, devices.accelerator)
    auto = config["data"].get("micro_batch_size") == "auto"
    log.info("            %s%s", split, ", or as much of it at once as fits" if auto else "")
    rule, base = config["lr_scaling"], config["base_batch_size"]
    scaled = "" if rule == "none" else f" ({rule}, from batch {base})"
    if config["ckpt_path"] is None:
        log.info("            learning rate %s%s", _rates(model), scaled)
    else:
        log.info("goes on     from %s, with its learning rate", shown(Path(config["ckpt_path"])))


def _rates(model: Classifier) -> str:
    """Of what trains; `kept` and `new` where weights were taken from a file."""
    groups = model.build_optimizer().param_groups
    training = [group for group in groups if any(weight.requires_grad for weight in group["params"])]
    rates = [(group["lr"], f" ({group['name']})" if "name" in group else "") for group in training]
    return ", ".join(f"{rate:g}{name}" for rate, name in sorted(set(rates)))


def keep_metrics(metrics_csv: Path, loggers: list[Logger], step: int) -> None:
    """A CSVLogger begins its file anew: what a lost run had logged before `step` is written into it once more."""
    if not metrics_csv.is_file():
        return
    with metrics_csv.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            for row in rows:
                figures: dict[str, Tensor | float] = {k: _number(v) for k, v in row.items() if v and k != "step"}
                logger.log_metrics(figures, step=int(row["step"]))
            logger.save()


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


def report_training(metrics: dict[str, float], trainer: pl.Trainer, run_dir: Path) -> None:
    """Writes `metrics.json` and `curves.png`; says where the best checkpoint is and what to do next."""
    best = Path(getattr(trainer.checkpoint_callback, "best_model_path", ""))
    write_json(dict(sorted(metrics.items())), run_dir / "metrics.json")
    if (run_dir / "metrics.csv").is_file():
        plot_curves(run_dir / "metrics.csv", run_dir / "curves.png")
    _log_metrics(metrics)
    log.info("run         %s", shown(run_dir))
    if best.is_file():
        log.info("checkpoint  %s", shown(best))
        log.info("next        %s -m %s.evaluate ckpt_path=%s", python(), PACKAGE, shown(best))
        log.info("            %s -m %s.export ckpt_path=%s", python(), PACKAGE, shown(best))


def report_evaluation(metrics: dict[str, float], model: Classifier, run_dir: Path) -> None:
    """Writes `metrics.json` and `confusion_matrix.png`."""
    write_json(dict(sorted(metrics.items())), run_dir / "metrics.json")
    assert model.confusion_matrix is not None
    plot_confusion_matrix(model.confusion_matrix, model.spec.labels, run_dir / "confusion_matrix.png")
    _log_metrics(metrics)
    log.info("run         %s", shown(run_dir))


def report_export(bundle: Path, parities: list[Parity]) -> None:
    """A table of the verified files, and what to do with them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("format")
    for heading in ("size", "largest difference", "same label", "one sample"):
        table.add_column(heading, justify="right")
    for parity in parities:
        table.add_row(
            parity.format,
            f"{parity.num_bytes / 1024:,.0f} KiB",
            f"{parity.largest_difference:.1e}",
            f"{parity.num_agreeing}/{parity.num_samples}",
            f"{parity.latency_ms:.3f} ms",
        )
    Console().print(table)
    log.info("bundle      %s (verified: every file agrees with the trained model)", shown(bundle))
    log.info("next        read %s, the model card", shown(bundle / "README.md"))
    log.info("            %s -m %s.verify bundle=%s", python(), PACKAGE, shown(bundle))


def _log_metrics(metrics: dict[str, float]) -> None:
    for name, value in sorted(metrics.items()):
        log.info("%-12s%.4g", name, value)


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
    ticks, labels = range(len(labels)), tuple(label.replace("$", r"\$") for label in labels)  # else it opens a formula
    axes.set_xticks(ticks, labels, rotation=0 if max(map(len, labels)) <= 3 else 90)
    axes.set_yticks(ticks, labels)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    axes.set_title(f"{np.trace(counts)} of {counts.sum()} test samples right")
    figure.savefig(picture, dpi=120)
