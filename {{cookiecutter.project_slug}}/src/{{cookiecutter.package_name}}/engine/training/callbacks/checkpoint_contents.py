"""What a checkpoint holds besides what Lightning puts into it: plain data only."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class SelfContained(Callback):
    """Puts into each checkpoint what `evaluate` and `export` need besides the weights."""

    def __init__(self, contents: dict[str, Any]) -> None:
        self.contents = contents

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["project"] = self.contents


class RandomState(Callback):
    """Gives each rank its own random numbers, and stores the state of every rank's generators in each checkpoint."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = trainer.global_rank
        if self.states is not None and rank < len(self.states):
            set_random_state(self.states[rank])
        elif rank > 0:  # all ranks begin with the same seed, and their dropout masks would be the same
            torch.manual_seed(torch.initial_seed() + rank)
        self.states = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = [random_state()] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.states = checkpoint["random_states"]


class LastFigures(Callback):
    """Stores the figures of the last epoch, for a resumed run that has nothing left to do but its test."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["figures"] = figures_of_training(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.figures = checkpoint["figures"]


def figures_of_training(trainer: pl.Trainer) -> dict[str, float]:
    """Returns the figures of the last epoch by their logged names."""
    logged, others = trainer.callback_metrics, ("time/", "lr-", "warmup/", "test/")
    figures = {name: value.item() for name, value in logged.items() if "/" in name and not name.startswith(others)}
    stored = [callback.figures for callback in trainer.callbacks if isinstance(callback, LastFigures)]  # type: ignore[attr-defined]
    return {**(stored[0] if stored else {}), **figures}


def random_state() -> dict[str, Any]:
    """Returns tensors, numbers and strings only; long lists of numbers would be slow to write."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.tensor(np.asarray(keys, np.int64)), *rest],
        "python": [version, torch.tensor(numbers), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
