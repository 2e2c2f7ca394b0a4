"""`ema_decay=`: an exponential moving average of the weights, which is validated, saved and exported."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...distributed.strategies import DealingStrategy, local_shards

TRAINED = "trained_weights"  # in a checkpoint, whose `state_dict` holds the averages


class EMA(Callback):
    """After each optimiser step, `average = decay * average + (1 - decay) * weight`, from the weights of the start on.

    Numbers in buffers are averaged too, such as the statistics of BatchNorm (Polyak averaging as in Tarvainen and
    Valpola, 2017, arXiv:1703.01780). In a validation the module holds the averages, and after the training for good.
    Lightning's `EMAWeightAveraging` copies the module, which FSDP2 does not allow. Without a decay, a training that
    goes on from a checkpoint with averages returns to its weights.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay, self.last_step = decay, 0
        self.held: dict[str, Tensor] = {}  # what the module does not hold: the averages, or in a validation the weights
        self.names: dict[str, str] = {}  # for each tensor of a checkpoint, under which name `held` has it
        self.weights: list[Tensor] = []  # of the module, in the order of `held`
        self.is_swapped = False
        self.restored: dict[str, Any] | None = None  # of a checkpoint: the weights, to which the training returns
        if decay is None:  # Lightning does not call an attribute that is None
            self.on_train_batch_end = None  # type: ignore[assignment,method-assign]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if TRAINED in checkpoint and trainer.state.fn == TrainerFn.FITTING:
            self.restored = {**checkpoint["state_dict"], **checkpoint[TRAINED]}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        strategy = _strategy(trainer)
        if self.decay is not None:
            self._hold(strategy)
        self.last_step = trainer.global_step
        if self.restored is not None:
            strategy.load_model_state_dict({"state_dict": self.restored})
            self.restored = None

    def _hold(self, strategy: DealingStrategy) -> None:
        tensors = strategy.averaged_tensors()
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}  # layers may share a weight
        self.names = {name: first[id(tensor)] for name, tensor in tensors.items()}
        self.held = {name: tensors[name].detach().clone() for name in first.values()}
        self.weights = [tensors[name] for name in self.held]
        self.update = get_ema_multi_avg_fn(self.decay)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.last_step:
            return
        self.last_step = trainer.global_step
        self.update(local_shards(self.held.values()), local_shards(self.weights), None)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.held:
            self._swap(trainer)

    on_validation_end = on_validation_start

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The training is over, and its last checkpoint is saved."""
        self.on_validation_start(trainer, pl_module)
        self.held = {}

    @torch.no_grad()
    def _swap(self, trainer: pl.Trainer) -> None:
        now = _strategy(trainer).averaged_tensors()  # of the shards under fsdp, whatever was gathered
        tensors = local_shards(now[name] for name in self.held)
        for average, tensor in zip(local_shards(self.held.values()), tensors, strict=True):
            before = tensor.clone()
            tensor.copy_(average)
            average.copy_(before)
        self.is_swapped = not self.is_swapped

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self.held:
            return
        in_module, held = checkpoint["state_dict"], _strategy(trainer).gathered(self.held)
        averages, weights = (in_module, held) if self.is_swapped else (held, in_module)
        checkpoint["state_dict"] = in_module | {name: averages[held] for name, held in self.names.items()}
        checkpoint[TRAINED] = {name: weights[held] for name, held in self.names.items()}


def _strategy(trainer: pl.Trainer) -> DealingStrategy:
    assert isinstance(trainer.strategy, DealingStrategy)
    return trainer.strategy
