"""What a run prints at its start and leaves behind at its end: lines, `report.md`, tables and pictures."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ..config import PACKAGE
from ..console import duration, python, shown, wide_console, write_json
from ..data.description import DataDescription
from ..distributed.batch_norm import depends_on_split
from ..distributed.plan import Plan
from ..inference.signing import SIGNATURE
from ..markdown import render
from ..runs import run_record
from ..training.checkpoints import Checkpoint
from ..training.options import TrainOptions
from ..training.plots import CURVES, caption, plot_curves, split_and_metric

if TYPE_CHECKING:
    from ..export.gate import Parity

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


def announce(plan: Plan, options: TrainOptions, model: pl.LightningModule) -> None:
    """Logs before the first step what is trained, where, and how a batch is split."""
    num_weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    num_frozen = sum(weight.numel() for weight in model.parameters()) - num_weights
    of_all = f"{num_weights:,} of {num_weights + num_frozen:,}" if num_frozen else f"{num_weights:,}"
    log.info("training    %s weights, strategy=%s on %s", of_all, plan.strategy.name, plan.devices.accelerator)
    log.info("            %s", plan.split)
    if plan.split is not None:
        is_synced = bool(plan.trainer.get("sync_batchnorm"))
        sentence = depends_on_split(model, plan.devices.num_devices, plan.split.num_steps, is_synced)
        if sentence is not None:
            log.info("            %s", sentence)
    if options.ckpt_path is not None:
        log.info("goes on     from %s", shown(Path(options.ckpt_path)))


def restore_metrics(metrics_csv: Path, loggers: list[Logger], before: Checkpoint | None) -> None:
    """Logs the earlier figures of a resumed run once more, because a CSVLogger begins its file anew.

    Those of the last epoch may be in the checkpoint alone: Lightning logs some after it was saved, and a run may be
    killed while the file is written.
    """
    if before is None or not metrics_csv.is_file():
        return
    with metrics_csv.open(encoding="utf-8", newline="") as file:
        read = [{name: _number(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    rows = [row for row in read if row["step"] < before.step]
    for split in ("val", "train"):
        last = {name: value for name, value in before.figures.items() if split_and_metric(name)[0] == split}
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


def report_training(metrics: dict[str, float], trainer: pl.Trainer, run_dir: Path) -> None:
    """Writes `metrics.json`, the pictures and `report.md`; says where the best checkpoint is and what to do next."""
    best = Path(getattr(trainer.checkpoint_callback, "best_model_path", ""))
    write_json(dict(sorted(metrics.items())), run_dir / "metrics.json")
    last_epoch, best_epoch = trainer.current_epoch, _epoch_of(best, trainer.current_epoch)
    if (run_dir / "metrics.csv").is_file():
        plot_curves(run_dir / "metrics.csv", run_dir / CURVES, best_epoch)
    write_report(run_dir, metrics, best if best.is_file() else None, last_epoch, best_epoch)
    _print_figures(metrics, last_epoch, best_epoch)
    log.info("run         %s, described in its report.md", shown(run_dir))
    for trace in run_dir.glob("*.pt.trace.json"):  # of debug=profiler
        trace = trace.rename(run_dir / "trace.json")
        log.info("profile     read fit-profile.txt there, and open %s at https://ui.perfetto.dev", shown(trace))
    if best.is_file():
        log.info("checkpoint  %s", shown(best))
        for heading, line in zip(("next", ""), _next_commands(best), strict=True):
            log.info("%-12s%s", heading, line)


def _epoch_of(checkpoint: Path, last_epoch: int) -> int | None:
    """The number of the epoch that a checkpoint is of, counted from 1; None if there is no such file.

    One that was saved at the end of the run says already that the next epoch comes.
    """
    if not checkpoint.is_file():
        return None
    return min(last_epoch, int(torch.load(checkpoint, mmap=True, weights_only=True)["epoch"]) + 1)


def _by_split(metrics: Mapping[str, float]) -> tuple[list[str], dict[str, list[float | None]]]:
    """Returns the splits, and the figures of each metric for them; a metric of no split is left out."""
    parts = {name: split_and_metric(name) for name in metrics}
    splits = [split for split in SPLITS if any(split == of for of, _ in parts.values())]
    figures: dict[str, dict[str, float]] = {}
    for name, (split, metric) in sorted(parts.items()):
        figures.setdefault(metric, {})[split] = metrics[name]
    return splits, {name: [of.get(split) for split in splits] for name, of in figures.items() if of.keys() & {*splits}}


def _print_figures(metrics: Mapping[str, float], last_epoch: int, best_epoch: int | None) -> None:
    """Prints a table of the figures; training and validation are those of the last epoch, the test of the best one."""
    splits, figures = _by_split(metrics)
    tested = f"epoch {last_epoch}" if best_epoch is None else f"best, epoch {best_epoch}"
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for split in splits:
        table.add_column(f"{split}\n{tested if split == 'test' else f'epoch {last_epoch}'}", justify="right")
    for name, values in figures.items():
        table.add_row(escape(name), *("" if value is None else f"{value:.4g}" for value in values))
    wide_console().print(table)


def write_report(
    run_dir: Path,
    metrics: Mapping[str, float],
    checkpoint: Path | None,
    last_epoch: int,
    best_epoch: int | None,
) -> None:
    """Writes `report.md` from the record of the run, its pictures, and `metrics` by their logged names."""
    record = run_record.read(run_dir)
    started = record.get("started", run_record.now())
    splits, figures = _by_split(metrics)
    pictures = sorted(run_dir.glob("*.png"), key=lambda path: (path.name != CURVES, path.name))
    text = render(
        Path(__file__).with_name("report.md.jinja"),
        name=run_dir.name,
        started=started,
        duration=duration(time.time() - time.mktime(time.strptime(started, run_record.TIME_FORMAT))),
        commit=run_record.commit_words(record.get("git")),
        versions=record.get("versions", {}),
        options=run_record.typed_options(run_dir),
        samples=record.get("samples"),
        data={**asdict(DataDescription()), **record.get("data", {})},
        splits=splits,
        figures=figures,
        last_epoch=last_epoch,
        best_epoch=best_epoch,
        pictures=[(path.name, caption(path)) for path in pictures],
        checkpoint=checkpoint,
        commands=_next_commands(checkpoint) if checkpoint is not None else [],
    )
    (run_dir / "report.md").write_text(text, encoding="utf-8")


def _next_commands(checkpoint: Path) -> list[str]:
    return [f"{python()} -m {PACKAGE} {command} ckpt_path={shown(checkpoint)}" for command in ("evaluate", "export")]


def report_evaluation(metrics: dict[str, float], run_dir: Path) -> None:
    """Writes `metrics.json`, and says where the pictures of the test lie."""
    write_json(dict(sorted(metrics.items())), run_dir / "metrics.json")
    _log_metrics(metrics)
    log.info("run         %s", shown(run_dir))


def report_export(bundle: Path, parities: list[Parity]) -> None:
    """Prints a table of the verified files and what to do with them."""
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
    key = " key=<public key>" if (bundle / SIGNATURE).exists() else ""
    log.info("            %s -m %s verify bundle=%s%s", python(), PACKAGE, shown(bundle), key)


def _log_metrics(metrics: dict[str, float]) -> None:
    width = max(map(len, (*metrics, " " * 10))) + 2
    for name, value in sorted(metrics.items()):
        log.info("%-*s%.4g", width, name, value)
