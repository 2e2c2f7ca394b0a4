"""`last.ckpt`: from where a run goes on."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from ...atomic import remove_temporary_files
from ...config.command_line import interruption
from ...console import python, shown
from ...errors import UserError
from ..checkpoint_io import LAST
from .preemption import Consensus, SignalListener

log = logging.getLogger(__name__)

PACKAGE = __name__.split(".")[0]


class LastCheckpoint(ModelCheckpoint):
    """Saves after each epoch, and within one after every n optimiser steps or minutes, and when the run is to end.

    SIGTERM and Ctrl-C end it after a whole optimiser step, whose state is saved first; in a validation they wait for
    its end. Sent once more they end it at once.
    """

    def __init__(self, dirpath: str, every_n_steps: int | None = None, every_n_minutes: float | None = None) -> None:
        super().__init__(
            dirpath, Path(LAST).stem, enable_version_counter=False, save_on_train_epoch_end=True, every_n_epochs=1
        )
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise UserError(f"callbacks.last.{name}={value} is out of range: give more than 0, or null.")
        self.every_n_steps = every_n_steps or sys.maxsize
        self.seconds = every_n_minutes * 60 if every_n_minutes else float("inf")
        self.wish = SignalListener()
        self.agreed = 0  # on the signal that some rank has heard
        self.is_due, self.saved_at = False, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero:
            remove_temporary_files(self._path.parent)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.agreement = Consensus(trainer.world_size, num_wishes=2)
        self.saved_at = time.monotonic()
        # Of a run that had stopped early, and was ended before it came to its end.
        if any(stop.wait_count >= max(1, stop.patience) for stop in trainer.early_stopping_callbacks):
            trainer.should_stop = True
        self.wish.listen(is_one_of_several=trainer.world_size > 1)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_if_agreed(trainer)  # not in `on_train_epoch_end`: Lightning logs the figures of the epoch after it

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.wish.last_batch = now = time.monotonic()
        number, is_time = self.agreement.after_batch([self.wish.number, int(now - self.saved_at > self.seconds)])
        self.agreed, self.is_due = max(self.agreed, number), self.is_due or bool(is_time)
        num_batches = batch_idx + 1
        if num_batches % trainer.accumulate_grad_batches:  # gradients that are not applied yet are in no checkpoint
            return
        self.is_due |= trainer.global_step % self.every_n_steps == 0
        # Where validation comes next Lightning would go on behind it.
        if trainer.is_last_batch or num_batches % (trainer.val_check_batch or float("inf")) == 0:
            return
        if self.is_due or self.agreed:
            self._save(trainer)
        self._end_if_agreed(trainer)

    def on_validation_batch_end(self, *args: Any) -> None:
        self.wish.last_batch = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.is_due, self.saved_at = False, time.monotonic()
        self.agreed = self.agreement.now(self.wish.number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.agreed = self.agreement.now(self.wish.number)
        self._end_if_agreed(trainer)
        self.wish.ignore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.wish.ignore()

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self._path, self.save_weights_only)
        self.is_due, self.saved_at = False, time.monotonic()

    def _end_if_agreed(self, trainer: pl.Trainer) -> None:
        if not self.agreed:
            return
        self.wish.ignore()
        if trainer.is_global_zero and self._path.exists():
            log.info("saved       step %d of epoch %d", trainer.global_step, trainer.current_epoch + 1)
            log.info("next        %s -m %s train resume=%s", python(), PACKAGE, shown(self._path.parents[1]))
        raise interruption(self.agreed)

    @property
    def _path(self) -> Path:
        return Path(str(self.dirpath)) / LAST
