"""Lightning callbacks of this project's own; the others come from `configs/callbacks/`."""

import logging
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from .refusal import Refusal
from .strategies.launch import COUNTS_OF_BATCHES
from .strategies.samplers import BatchSplit

log = logging.getLogger(__name__)


class DataWait(Callback):
    """Logs `time/data`, the seconds of an epoch that a rank waited for batches of training, in the mean."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds = getattr(trainer.train_dataloader, "seconds_waited", None)
        if seconds is not None:
            pl_module.log("time/data", seconds, sync_dist=True)


class SelfContained(Callback):
    """Puts into each checkpoint what `evaluate` and `export` need beside the weights, as plain data."""

    def __init__(self, contents: dict[str, Any]) -> None:
        self.contents = contents

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["project"] = self.contents


class SameWeights(Callback):
    """Stops a run whose ranks no longer hold the same weights, to the bit; looked at after each epoch of ddp."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size == 1 or not isinstance(trainer.strategy, DDPStrategy):  # fsdp holds a part on each
            return
        names, weights = zip(*pl_module.named_parameters(), strict=True)
        own = torch.stack([_bit_sum(weight) for weight in weights])
        sums = [torch.empty_like(own) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(sums, own)
        differing = torch.nonzero(torch.stack(sums) != sums[0]).tolist()
        if differing:
            rank, position = differing[0]
            raise RuntimeError(
                f"rank {rank} and rank 0 hold different weights after epoch {trainer.current_epoch + 1}, "
                f"first in '{names[position]}': something changes them on one rank alone, "
                "or the ranks run different versions of the code or of torch."
            )


def _bit_sum(weight: Tensor) -> Tensor:
    """The sum of the bit patterns, as whole numbers: no rounding, so the order of the sum does not matter."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return weight.detach().contiguous().view(kind).sum(dtype=torch.int64)


class RandomState(Callback):
    """Gives each rank its own random numbers, and keeps in each checkpoint where they are on every rank."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = trainer.global_rank
        if self.states is not None and rank < len(self.states):
            _set_random_state(self.states[rank])
        elif rank > 0:  # all ranks begin with the same seed, and their dropout masks would be the same
            torch.manual_seed(torch.initial_seed() + rank)
        self.states = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = [_random_state()] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.states = checkpoint.get("random_states")


def _random_state() -> dict[str, Any]:
    """Tensors, numbers and words only, as in all of a checkpoint; long lists of numbers would be slow to write."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.tensor(np.asarray(keys, np.int64)), *rest],
        "python": [version, torch.tensor(numbers), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    """Lists too, as in checkpoints of earlier versions of this project."""
    torch.set_rng_state(torch.as_tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.as_tensor(cuda, dtype=torch.uint8) for cuda in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(map(int, numbers)), gauss))


class LargestMicroBatch(Callback):
    """`data.micro_batch_size=auto`: halves what a device holds at once until a training step fits, and accumulates.

    The result does not change, because `BatchSplit` leaves nothing over. All ranks take the smallest that any found.
    `training_step` is called outside of the loop: it must not call `self.log`.
    """

    def __init__(self, split: BatchSplit) -> None:
        self.split = split

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        states, training = _random_state(), pl_module.training
        buffers = [buffer.clone() for buffer in pl_module.buffers()]
        batch = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
        in_process = self.split.num_devices // trainer.world_size
        sizes = _halves(self.split.micro_batch_size)
        pl_module.train()
        fitting = next((size for size in sizes if _fits(trainer, pl_module, batch, size * in_process)), 0)
        pl_module.train(training)
        _set_random_state(states)
        for buffer, before in zip(pl_module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        fitting = int(trainer.strategy.reduce(torch.tensor(fitting, device=pl_module.device), reduce_op="min"))
        if fitting == 0:
            raise Refusal("data.micro_batch_size=auto: not even one sample fits a device; take a smaller network.")
        split = BatchSplit.of(self.split.batch_size, self.split.num_devices, fitting)
        trainer.accumulate_grad_batches = split.num_steps
        for name in COUNTS_OF_BATCHES:  # the user counts whole batches
            if isinstance(getattr(trainer, name), int):
                setattr(trainer, name, getattr(trainer, name) * split.num_steps)
        log.info("fits        %s", split)


def _halves(size: int) -> list[int]:
    """The size itself, then of its divisors the largest that is at most half of the one before."""
    sizes = [size]
    while sizes[-1] > 1:
        sizes.append(next(part for part in range(sizes[-1] // 2, 0, -1) if size % part == 0))
    return sizes


def _fits(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, num_samples: int) -> bool:
    """Tries forward and backward with what an optimizer such as Adam holds beside them: two figures a weight."""
    try:
        held = [torch.empty_like(weight) for weight in pl_module.parameters() for _ in range(2)]
        part = trainer.strategy.batch_to_device(apply_to_collection(batch, Tensor, lambda x: x[:num_samples]))
        part = trainer.precision_plugin.convert_input(part)
        with trainer.precision_plugin.train_step_context():
            loss = pl_module.training_step(part, 0)
        assert isinstance(loss, Tensor)
        torch.autograd.backward(loss)
        del held
    except RuntimeError as error:
        # The last: of cuBLAS and cuDNN, at the edge of memory.
        if not (isinstance(error, torch.OutOfMemoryError) or is_oom_error(error) or "ALLOC_FAILED" in str(error)):
            raise
        return False
    finally:
        pl_module.zero_grad()
        garbage_collection_cuda()
    return True
