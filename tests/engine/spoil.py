"""Callbacks that make a run fail: an unreadable sample, a lost worker process, NaN."""

import os
import signal
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import get_worker_info


class BadSample(Callback):
    """Makes sample 17 of the training split unreadable from an epoch on, counted from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch < self.epoch:
            return
        samples = trainer.datamodule.samples["train"]  # type: ignore[attr-defined]
        read = type(samples).__getitems__

        def getitems(indices: list[int]) -> Any:
            if 17 in indices:
                raise ValueError("a broken\npicture")
            return read(samples, indices)

        samples.__getitems__ = getitems


class LostWorker(Callback):
    """Kills the worker process that reads sample 17."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        samples = trainer.datamodule.samples["train"]  # type: ignore[attr-defined]
        read = type(samples).__getitems__

        def getitems(indices: list[int]) -> Any:
            if 17 in indices and get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(samples, indices)

        samples.__getitems__ = getitems


class NotANumber(Callback):
    """Turns into NaN the loss of some optimiser steps, or a score of all validations from an epoch on."""

    def __init__(self, steps: list[int] | None = None, score: str | None = None, epoch: int = 0) -> None:
        self.steps, self.score, self.epoch = steps or [], score, epoch

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        forward = pl_module.loss.forward

        def spoiled_loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = forward(outputs, y)
            return loss * float("nan") if pl_module.training and trainer.global_step in self.steps else loss

        pl_module.loss.forward = spoiled_loss
        if self.score is None:
            return
        metric = dict(pl_module.val_scores.items())[self.score]
        compute = metric.compute

        def spoiled_score() -> torch.Tensor:
            value: torch.Tensor = compute()
            return value * float("nan") if trainer.current_epoch >= self.epoch else value

        metric.compute = spoiled_score
