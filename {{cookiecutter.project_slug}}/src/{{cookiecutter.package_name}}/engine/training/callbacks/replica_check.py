"""Whether all ranks hold the same network."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor


class ReplicaCheck(Callback):
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
