"""What is not a finite number must not be trained on: the run stops before it is saved, or leaves the batch out."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from ...console import shown, write_json
from ...data.loader import Loader
from ...data.samples import ResumableLoader
from ...errors import Fault
from ..base_module import BaseModule

log = logging.getLogger(__name__)

FILE = "not_finite.json"
REMEDY = "look at their values, take a lower model.optimizer.lr or set trainer.gradient_clip_val"
MOST_IN_A_ROW = 10  # batches that are left out; after so many it is the weights, and no batch will do


class NanGuard(Callback):
    """Stops a run whose loss, or a figure that is monitored, is NaN or infinite; the samples are in `not_finite.json`,
    by their positions in the training split.

    With `skip` the optimizer leaves a batch out whose gradients are not finite. Under `16-mixed` torch's scaler does
    so itself, as it must now and then.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.pending: tuple[Tensor, torch.cuda.Event | None, int] | None = None
        self.skipped: list[dict[str, Any]] = []
        self.in_a_row = 0
        if not skip:  # Lightning passes by what is not callable
            self.on_before_optimizer_step = None  # type: ignore[assignment,method-assign]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, BaseModule):
            pl_module.counts_all = not self.skip

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.skip or not outputs:
            return
        self._check(trainer)
        loss, event = outputs["loss"], None
        if loss.is_cuda:  # looked at a step later: the GPU is not waited for
            loss = loss.to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self.pending = loss, event, batch_idx
        if event is None:
            self._check(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        weights = [weight for weight in pl_module.parameters() if weight.grad is not None]
        total = torch.stack([weight.grad.sum(dtype=torch.float32) for weight in weights]).sum()  # type: ignore[union-attr]
        is_bad = (~torch.isfinite(total)).long()
        if not trainer.strategy.reduce(is_bad, reduce_op="max"):
            self.in_a_row = 0
            return
        for weight in weights:
            weight.grad = None  # to the optimizer, a weight that had no part in the loss
        self.in_a_row += 1
        loader, step = trainer.train_dataloader, trainer.fit_loop.batch_idx // trainer.accumulate_grad_batches
        samples = loader.position.of_step(step) if isinstance(loader, ResumableLoader) else None
        self.skipped.append({"epoch": trainer.current_epoch + 1, "batch": step + 1, "samples": samples})
        if trainer.is_global_zero:
            write_json(self.skipped, Path(trainer.default_root_dir) / FILE)
            log.warning("skipped     a batch whose gradients are not finite: it is in %s", FILE)
        if self.in_a_row == MOST_IN_A_ROW:
            raise Fault(f"the gradients of {MOST_IN_A_ROW} batches one after the other are not finite: {REMEDY}.")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        callbacks = (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks)
        for name in {str(getattr(callback, "monitor", None)) for callback in callbacks}:
            value = trainer.callback_metrics.get(name)
            if value is not None and not torch.isfinite(value):
                raise Fault(
                    f"{name} is {value.item()} after epoch {trainer.current_epoch + 1}, and it is what a callback "
                    "monitors: look for samples that it cannot be computed of, or set monitor= to another figure."
                )

    def _check(self, trainer: pl.Trainer) -> None:
        if self.pending is None:
            return
        (loss, event, batch_idx), self.pending = self.pending, None
        if event is not None:
            event.synchronize()
        if torch.isfinite(loss):
            return
        loader, file = trainer.train_dataloader, Path(trainer.default_root_dir) / FILE
        samples = loader.places(batch_idx) if isinstance(loader, Loader) else None  # those of this rank
        epoch, batch = trainer.current_epoch + 1, batch_idx // trainer.accumulate_grad_batches + 1
        write_json([{"epoch": epoch, "batch": batch, "samples": samples, "loss": str(loss.item())}], file)
        raise Fault(
            f"the loss is {loss.item()} at batch {batch} of epoch {epoch}, whose samples "
            f"are in {shown(file)}: {REMEDY}, or leave such batches out with callbacks.nan_guard.skip=true."
        )
