"""How long the epochs of a run took, and how much memory they needed; `benchmark` adds this callback to its runs."""

import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from ...console import write_json

if sys.platform != "win32":
    import resource


class EpochTimes(Callback):
    """Writes `epoch_times.json` into the run directory at the end of the training.

    An epoch lasts until the next one begins: validation, metrics and checkpoints are included, the start-up is not.
    """

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.starts.append(time.perf_counter())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ends = [*self.starts[1:], time.perf_counter()]
        peak = torch.tensor(_peak_memory_mib(pl_module.device), device=pl_module.device)
        figures = {
            "epoch_seconds": [end - start for start, end in zip(self.starts, ends, strict=True)],
            "steps_per_epoch": int(trainer.num_training_batches) // trainer.accumulate_grad_batches,
            # The peak of the fullest device, or of the largest process.
            "peak_memory_mib": float(trainer.strategy.reduce(peak, reduce_op="max")),
        }
        if trainer.is_global_zero:
            write_json(figures, Path(trainer.default_root_dir, "epoch_times.json"))


def _peak_memory_mib(device: torch.device) -> float:
    """Returns what torch held on the fullest GPU, or what this process held in the host's memory."""
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())) / 2**20
    if sys.platform == "win32":
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
