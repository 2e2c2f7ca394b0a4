"""What becomes of the learning rate from epoch to epoch, and in the first steps."""

import sys
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau

from .parameter_groups import check_rates


def schedules(
    optimizer: Optimizer,
    make_scheduler: Callable[[Optimizer], LRScheduler] | None,
    warmup_steps: int,
    pretrained_lr_factor: float,
) -> list[Any]:
    """As Lightning takes them from `configure_optimizers`."""
    found: list[Any] = []
    if make_scheduler is not None:
        scheduler = make_scheduler(optimizer)
        check_rates(optimizer, pretrained_lr_factor)
        # Lightning leaves out the step of a plateau in the epoch in which a run goes on: `after_validation` takes it.
        frequency = sys.maxsize if isinstance(scheduler, ReduceLROnPlateau) else 1
        found.append({"scheduler": scheduler, "monitor": "val/loss", "frequency": frequency})
    if warmup_steps:  # a factor that grows from step to step, on top of what the scheduler does
        warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
        found.append({"scheduler": warmup, "interval": "step", "name": "warmup"})
    return found


def after_validation(trainer: pl.Trainer, loss: float) -> None:
    """The step of a scheduler that waits for a plateau; before the checkpoint of the epoch, which holds it."""
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and not trainer.sanity_checking:
            config.scheduler.step(loss)  # type: ignore[arg-type]
