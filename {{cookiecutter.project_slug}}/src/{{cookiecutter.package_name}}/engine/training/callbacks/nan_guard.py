"""Guards against NaN and infinity: the run stops before such weights are saved, or leaves the batch out."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from ...console import shown, write_json
from ...distributed.dealing import DealtLoader
from ...distributed.strategies import DealingStrategy, local_shards
from ...errors import Fault

log = logging.getLogger(__name__)

FILE = "not_finite.json"
REMEDY = "look at their values, take a lower model.optimizer.lr or set trainer.gradient_clip_val"
MAX_CONSECUTIVE = 10  # batches that are left out; after so many it is the weights that are bad


class NanGuard(Callback):
    """Stops a run whose loss, or a metric that is monitored, is NaN or infinite; writes the positions of the samples
    in the training split to `not_finite.json`.

    With `skip` the optimizer leaves out a batch whose gradients are not finite. Under `16-mixed` torch's scaler does
    so itself, as it occasionally must.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.pending: tuple[Tensor, torch.cuda.Event | None, dict[str, Any]] | None = None
        self.skipped: list[dict[str, Any]] = []
        self.num_consecutive = 0
        if not skip:  # Lightning does not call an attribute that is None
            self.on_before_optimizer_step = None  # type: ignore[assignment,method-assign]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.strategy, DealingStrategy):
            trainer.strategy.skips_nonfinite = self.skip

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.skip or not outputs:
            return
        self._check(trainer)
        loss, event = outputs["loss"], None
        if loss.is_cuda:  # checked a step later, so that the GPU is not waited for
            loss = loss.to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self.pending = loss, event, _place(trainer, of_all_ranks=False)
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
        gradients = local_shards(weight.grad for weight in weights)
        total = torch.stack([gradient.sum(dtype=torch.float32) for gradient in gradients]).sum()
        is_bad = (~torch.isfinite(total)).long()
        if not trainer.strategy.reduce(is_bad, reduce_op="max"):
            self.num_consecutive = 0
            return
        for weight in weights:
            weight.grad = None  # the optimizer skips it, as a weight that has no part in the loss
        self.num_consecutive += 1
        self.skipped.append(_place(trainer, of_all_ranks=True))
        if trainer.is_global_zero:
            write_json(self.skipped, Path(trainer.default_root_dir) / FILE)
            log.warning("skipped     a batch whose gradients are not finite: it is in %s", FILE)
        if self.num_consecutive == MAX_CONSECUTIVE:
            raise Fault(f"the gradients of {MAX_CONSECUTIVE} batches one after the other are not finite: {REMEDY}.")

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
        (loss, event, place), self.pending = self.pending, None
        if event is not None:
            event.synchronize()
        if torch.isfinite(loss):
            return
        file = Path(trainer.default_root_dir) / FILE
        write_json([{**place, "loss": str(loss.item())}], file)
        raise Fault(
            f"the loss is {loss.item()} at batch {place['batch']} of epoch {place['epoch']}, whose samples "
            f"are in {shown(file)}: {REMEDY}, or leave such batches out with callbacks.nan_guard.skip=true."
        )


def _place(trainer: pl.Trainer, of_all_ranks: bool) -> dict[str, Any]:
    """The epoch and the batch of this step, counted from 1, and its samples; None if the engine did not deal them."""
    loader, samples = trainer.train_dataloader, None
    if isinstance(loader, DealtLoader) and loader.part is not None:
        samples = loader.whole_batch if of_all_ranks else loader.part.indices
    batch = trainer.fit_loop.batch_idx // trainer.accumulate_grad_batches + 1
    return {"epoch": trainer.current_epoch + 1, "batch": batch, "samples": samples}
