"""`last.ckpt`: the checkpoint from which a run is continued."""

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
    """Saves after each epoch, within one after every n optimiser steps or minutes, and at SIGTERM and Ctrl-C.

    A signal ends the run after an optimiser step, whose state is saved first; a validation is completed before. A
    second signal ends the run at once. A run that `max_steps` or `max_time` ends within an epoch is saved as it is
    there, so that it can be continued. Where nothing was validated, the last checkpoint is the best one too.
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
        self.signals = SignalListener()
        self.agreed_signal = 0  # received by some rank, and known to all
        self.is_due, self.saved_at = False, 0.0
        self.is_stopping = False  # `max_time` was reached within an optimiser step, which is completed first
        self.ends_within_epoch = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero:
            remove_temporary_files(self._path.parent)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.consensus = Consensus(trainer.world_size)
        self.saved_at = time.monotonic()
        # The run had stopped early, and was killed before its test.
        if any(stop.wait_count >= max(1, stop.patience) for stop in trainer.early_stopping_callbacks):
            trainer.should_stop = True
        self.signals.start(is_distributed=trainer.world_size > 1)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_if_agreed(trainer)  # not in `on_train_epoch_end`, after which Lightning logs the epoch's metrics

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.signals.last_batch_at = now = time.monotonic()
        requests = [self.signals.number, int(now - self.saved_at > self.seconds)]
        number, is_time = self.consensus.after_batch(requests)
        self.agreed_signal, self.is_due = max(self.agreed_signal, number), self.is_due or bool(is_time)
        num_batches = batch_idx + 1
        self.is_stopping |= trainer.should_stop
        if num_batches % trainer.accumulate_grad_batches:  # no checkpoint holds accumulated gradients
            trainer.should_stop = False
            return
        trainer.should_stop = self.is_stopping
        self.is_due |= trainer.global_step % self.every_n_steps == 0
        # If validation comes next, Lightning would continue after it.
        is_validated_next = _is_validated_after(trainer, num_batches)
        if not trainer.is_last_batch and _is_ending(trainer):
            self.ends_within_epoch, self.is_due = True, True
            if not is_validated_next:
                self._save(trainer)
            return
        if trainer.is_last_batch or is_validated_next:
            return
        if self.is_due or self.agreed_signal:
            self._save(trainer)
        self._end_if_agreed(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.ends_within_epoch and self.is_due:
            self._save(trainer)

    def on_validation_batch_end(self, *args: Any) -> None:
        self.signals.last_batch_at = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning ends an epoch that was cut short like any other, and steps its schedules: the earlier state counts.
        if self.is_due or not self.ends_within_epoch:
            super().on_train_epoch_end(trainer, pl_module)
        self.is_due, self.saved_at = False, time.monotonic()
        self.agreed_signal = self.consensus.now(self.signals.number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        best: Any = trainer.checkpoint_callback
        is_own = best.best_model_path and Path(best.best_model_path).parent == Path(str(best.dirpath))
        if best is not self and best.save_top_k and self._path.exists() and not is_own:
            best.best_model_path = str(Path(str(best.dirpath)) / best.format_checkpoint_name({}))
            trainer.save_checkpoint(best.best_model_path)
            log.info("best        nothing was validated, so %s is the last one", shown(Path(best.best_model_path)))
        self.agreed_signal = self.consensus.now(self.signals.number)
        self._end_if_agreed(trainer)
        self.signals.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.signals.stop()

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self._path, self.save_weights_only)
        self.is_due, self.saved_at = False, time.monotonic()

    def _end_if_agreed(self, trainer: pl.Trainer) -> None:
        if not self.agreed_signal:
            return
        self.signals.stop()
        if trainer.is_global_zero and self._path.exists():
            log.info("saved       step %d of epoch %d", trainer.global_step, trainer.current_epoch + 1)
            log.info("next        %s -m %s train resume=%s", python(), PACKAGE, shown(self._path.parents[1]))
        raise interruption(self.agreed_signal)

    @property
    def _path(self) -> Path:
        return Path(str(self.dirpath)) / LAST


def _is_validated_after(trainer: pl.Trainer, num_batches: int) -> bool:
    """Whether a validation comes after so many batches of an epoch that has more."""
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    number = num_batches if every is not None else trainer.fit_loop.total_batch_idx + 1
    return number % (trainer.val_check_batch or float("inf")) == 0


def _is_ending(trainer: pl.Trainer) -> bool:
    """Whether the training ends after this step, and not with the epoch."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    has_enough = trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return trainer.should_stop and has_enough
