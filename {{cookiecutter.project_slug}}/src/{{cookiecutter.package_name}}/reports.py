"""What a run says at its start and leaves behind at its end."""

import json
import logging
import sys
from pathlib import Path

import lightning.pytorch as pl
from rich import box
from rich.console import Console
from rich.table import Table

from .cli import Config
from .exporters.gate import Parity
from .models.classifier import Classifier
from .plots import plot_confusion_matrix, plot_curves
from .strategies.devices import Devices

log = logging.getLogger(__name__)

PACKAGE = __name__.split(".")[0]


def announce(config: Config, devices: Devices, model: pl.LightningModule) -> None:
    """One line before the first step: what is trained, where, and how a batch is split."""
    strategy, batch_size = config["strategy"]["name"], config["data"].get("batch_size")
    num_devices = len(devices.indices)
    num_weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info(
        "training    %s weights, strategy=%s on %s, batch %s = %d %s x %s",
        f"{num_weights:,}",
        strategy,
        devices.accelerator,
        batch_size,
        num_devices,
        "device" if num_devices == 1 else "devices",
        batch_size // num_devices if batch_size else "?",
    )


def report_training(metrics: dict[str, float], trainer: pl.Trainer, run_dir: Path) -> None:
    """Writes `metrics.json` and `curves.png`; says where the best checkpoint is and what to do next."""
    best = Path(getattr(trainer.checkpoint_callback, "best_model_path", ""))
    _write_json(metrics, run_dir / "metrics.json")
    if (run_dir / "metrics.csv").is_file():
        plot_curves(run_dir / "metrics.csv", run_dir / "curves.png")
    _log_metrics(metrics)
    log.info("run         %s", _shown(run_dir))
    if best.is_file():
        log.info("checkpoint  %s", _shown(best))
        log.info("next        %s -m %s.evaluate ckpt_path=%s", _python(), PACKAGE, _shown(best))
        log.info("            %s -m %s.export ckpt_path=%s", _python(), PACKAGE, _shown(best))


def report_evaluation(metrics: dict[str, float], model: Classifier, run_dir: Path) -> None:
    """Writes `metrics.json` and `confusion_matrix.png`."""
    _write_json(metrics, run_dir / "metrics.json")
    assert model.confusion_matrix is not None
    plot_confusion_matrix(model.confusion_matrix, model.spec.labels, run_dir / "confusion_matrix.png")
    _log_metrics(metrics)
    log.info("run         %s", _shown(run_dir))


def report_export(bundle: Path, parities: list[Parity]) -> None:
    """A table of the verified files, and what to do with them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("format")
    for heading in ("size", "largest difference", "agreement", "median latency", "eager"):
        table.add_column(heading, justify="right")
    for parity in parities:
        table.add_row(
            parity.format,
            f"{parity.num_bytes / 1024:,.0f} KiB",
            f"{parity.largest_difference:.1e}",
            f"{parity.num_agreeing}/{parity.num_samples}",
            f"{parity.latency_ms:.3f} ms",
            f"{parity.eager_latency_ms:.3f} ms",
        )
    Console().print(table)
    log.info("bundle      %s (verified: every file agrees with the trained model)", _shown(bundle))
    log.info("next        read %s, the model card", _shown(bundle / "README.md"))


def _log_metrics(metrics: dict[str, float]) -> None:
    for name, value in sorted(metrics.items()):
        log.info("%-12s%.4g", name, value)


def _write_json(metrics: dict[str, float], path: Path) -> None:
    path.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies below it: shorter, and it can be copied into a command."""
    path = Path.cwd() / path
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _python() -> str:
    """As it can be typed here: the environment's own, where that is not activated."""
    return _shown(Path(sys.executable)) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
