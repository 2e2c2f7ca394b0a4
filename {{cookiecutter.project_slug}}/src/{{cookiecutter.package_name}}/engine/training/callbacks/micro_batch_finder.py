"""Finds how much of a batch a device can hold at once."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ...distributed.plan import COUNTS_OF_BATCHES, BatchSplit
from ...distributed.strategies import remember
from ...errors import UserError

log = logging.getLogger(__name__)


class MicroBatchFinder(Callback):
    """`data.micro_batch_size=auto`: halves the micro-batch until a training step fits, and accumulates gradients.

    The result does not change, because parts are weighted by their size. All ranks take the smallest size that any of
    them found. `training_step` is called outside of the loop, and what it logs is left out.
    """

    def __init__(self, split: BatchSplit) -> None:
        self.split = split

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        training, undo = pl_module.training, remember(trainer, is_stand_in=False)
        in_process = self.split.num_devices // trainer.world_size
        sizes = [self.split.micro_batch_size]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] // 2)
        object.__setattr__(pl_module, "log", lambda *args, **kwargs: None)  # Lightning allows no log call here
        with isolate_rng():
            batch = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
            pl_module.train()
            fitting = next((size for size in sizes if _fits(trainer, pl_module, batch, size * in_process)), 0)
        undo()
        pl_module.train(training)
        fitting = int(trainer.strategy.reduce(torch.tensor(fitting, device=pl_module.device), reduce_op="min"))
        if fitting == 0:
            raise UserError("data.micro_batch_size=auto: not even one sample fits a device; take a smaller network.")
        split = self.split.cut(fitting)
        trainer.accumulate_grad_batches = split.num_steps
        for name in COUNTS_OF_BATCHES:  # given as numbers of batches, not of micro-batches
            if isinstance(getattr(trainer, name), int):
                setattr(trainer, name, getattr(trainer, name) * split.num_steps)
        log.info("fits        %s", split)


def _fits(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, num_samples: int) -> bool:
    """Tries forward and backward beside the state of an optimizer such as Adam, two values for each weight."""
    try:
        optimizer_state = [torch.empty_like(weight) for weight in pl_module.parameters() for _ in range(2)]
        part = trainer.strategy.batch_to_device(apply_to_collection(batch, Tensor, lambda x: x[:num_samples]))
        part = trainer.precision_plugin.convert_input(part)
        with trainer.precision_plugin.train_step_context():
            loss = pl_module.training_step(part, 0)
        assert isinstance(loss, Tensor)
        torch.autograd.backward(loss)
        del optimizer_state
    except RuntimeError as error:
        # cuBLAS and cuDNN report the last one.
        if not (isinstance(error, torch.OutOfMemoryError) or is_oom_error(error) or "ALLOC_FAILED" in str(error)):
            raise
        return False
    finally:
        pl_module.zero_grad()
        garbage_collection_cuda()
    return True
