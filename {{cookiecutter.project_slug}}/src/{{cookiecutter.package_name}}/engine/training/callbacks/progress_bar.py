"""What shows the progress of a run."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


def progress_bar() -> ProgressBar:
    """A bar on a terminal; in a pipe or a log file, where a bar would be thousands of lines, one line an epoch."""
    return Bar(refresh_rate=10) if sys.stdout.isatty() else EpochLines()


class Bar(RichProgressBar):
    """Lightning's own counts every step, which takes longer than a small network; here it counts ten times a second."""

    last = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *of_batch: Any) -> None:
        now = time.perf_counter()
        if now - self.last > 0.1 or trainer.is_last_batch:
            self.last = now
            super().on_train_batch_end(trainer, pl_module, *of_batch)


class EpochLines(ProgressBar):
    """Prints `epoch 3/30  1.2 s  train/loss 0.1234  val/acc 0.9778` at the end of each epoch."""

    start = 0.0

    def disable(self) -> None:
        """Lightning asks for it; here the first rank alone prints."""

    enable = disable

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self.start
        figures = "  ".join(f"{name} {value:.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        last = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        print(f"epoch {trainer.current_epoch + 1}{last}  {seconds:.1f} s  {figures}", flush=True)
