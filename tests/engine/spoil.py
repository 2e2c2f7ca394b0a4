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
        samples = trainer.train_dataloader.dataset  # type: ignore[union-attr]
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
        batch_loss, read_scores = pl_module.batch_loss, pl_module.read_scores

        def spoiled_loss(outputs: torch.Tensor, y: torch.Tensor, training: bool) -> torch.Tensor:
            loss: torch.Tensor = batch_loss(outputs, y, training=training)
            return loss * float("nan") if training and trainer.global_step in self.steps else loss

        def spoiled_scores(scores: Any) -> dict[str, torch.Tensor]:
            values: dict[str, torch.Tensor] = read_scores(scores)
            if self.score is not None and trainer.current_epoch >= self.epoch:
                values[self.score] = torch.tensor(float("nan"))
            return values

        pl_module.batch_loss, pl_module.read_scores = spoiled_loss, spoiled_scores
