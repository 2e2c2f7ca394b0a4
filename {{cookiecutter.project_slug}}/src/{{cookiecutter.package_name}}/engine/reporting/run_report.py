"""What a run says at its start and leaves behind at its end: lines, tables and pictures."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, Logger
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..config.command_line import Config
from ..console import python, shown, write_json
from ..distributed.devices import Devices
from ..distributed.samplers import BatchSplit
from ..training.base_module import BaseModule
from ..training.checkpoints import Checkpoint
from ..training.plots import LOSSES, plot_curves, plot_test
from .run_page import write_page

if TYPE_CHECKING:
    from ..export.gate import Parity

log = logging.getLogger(__name__)

PACKAGE = __name__.split(".")[0]


def announce(config: Config, devices: Devices, split: BatchSplit | None, model: BaseModule) -> None:
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


def _rates(model: BaseModule) -> str:
    """Of what trains; `kept` and `new` where weights were taken from a file."""
    groups = model.build_optimizer().param_groups
    training = [group for group in groups if any(weight.requires_grad for weight in group["params"])]
    rates = [(group["lr"], f" ({group['name']})" if "name" in group else "") for group in training]
    return ", ".join(f"{rate:g}{name}" for rate, name in sorted(set(rates)))


def keep_metrics(metrics_csv: Path, loggers: list[Logger], before: Checkpoint | None) -> None:
    """A CSVLogger begins its file anew: of a run that goes on, what came before is written into it once more.

    So are figures of the epoch that only the checkpoint has: Lightning logs them after it was saved.
    """
    if before is None or not metrics_csv.is_file():
        return
    with metrics_csv.open(encoding="utf-8", newline="") as file:
        read = [{name: _number(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    rows = [row for row in read if row["step"] < before.step]
    last = {name: value for name, value in before.figures.items() if name.startswith("train/")}
    if last and not any(last.items() <= row.items() for row in rows):
        rows.append({"epoch": before.epoch, **last, "step": before.step - 1})
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            for row in rows:
                figures: dict[str, Tensor | float] = {name: value for name, value in row.items() if name != "step"}
                logger.log_metrics(figures, step=int(row["step"]))
            logger.save()


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


def report_training(metrics: dict[str, float], trainer: pl.Trainer, model: BaseModule, run_dir: Path) -> None:
    """Writes `metrics.json`, the pictures and `report.md`; says where the best checkpoint is and what to do next."""
    best = Path(getattr(trainer.checkpoint_callback, "best_model_path", ""))
    write_json(dict(sorted(metrics.items())), run_dir / "metrics.json")
    if (run_dir / "metrics.csv").is_file():
        plot_curves(run_dir / "metrics.csv", run_dir / "curves.png", LOSSES[model.spec.task])
    if model.counts is not None:
        plot_test(model, run_dir)
    write_page(run_dir, metrics, model.spec.task, best if best.is_file() else None)
    _log_metrics(metrics)
    log.info("run         %s, described in its report.md", shown(run_dir))
    if best.is_file():
        log.info("checkpoint  %s", shown(best))
        log.info("next        %s -m %s evaluate ckpt_path=%s", python(), PACKAGE, shown(best))
        log.info("            %s -m %s export ckpt_path=%s", python(), PACKAGE, shown(best))


def report_evaluation(metrics: dict[str, float], model: BaseModule, run_dir: Path) -> None:
    """Writes `metrics.json` and a picture of the answers."""
    write_json(dict(sorted(metrics.items())), run_dir / "metrics.json")
    plot_test(model, run_dir)
    _log_metrics(metrics)
    log.info("run         %s", shown(run_dir))


def report_export(bundle: Path, parities: list[Parity]) -> None:
    """A table of the verified files, and what to do with them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("format")
    for heading in ("size", "largest difference", "alike", "one sample"):
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
    log.info("            %s -m %s verify bundle=%s", python(), PACKAGE, shown(bundle))


def _log_metrics(metrics: dict[str, float]) -> None:
    for name, value in sorted(metrics.items()):
        log.info("%-12s%.4g", name, value)
