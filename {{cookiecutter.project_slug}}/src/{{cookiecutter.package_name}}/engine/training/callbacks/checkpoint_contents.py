"""What a checkpoint holds beside what Lightning stores: plain data only."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class CheckpointContents(Callback):
    """Stores in each checkpoint `project`, which `evaluate` and `export` need beside the weights, and what a run needs
    to be continued: the random state of every rank, and the metrics of the last epoch.

    It also gives each rank random numbers of its own.
    """

    def __init__(self, project: dict[str, Any]) -> None:
        self.project = project
        self.metrics: dict[str, float] = {}  # for a run that is continued without an epoch left to train
        self.random_states: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = trainer.global_rank
        if rank < len(self.random_states):
            set_random_state(self.random_states[rank])
        elif rank > 0:  # all ranks begin with the same seed, and their dropout masks would be the same
            torch.manual_seed(torch.initial_seed() + rank)
        self.random_states = []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = [random_state()] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, states[0])
        checkpoint.update(project=self.project, random_states=states, figures=training_metrics(trainer))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.random_states, self.metrics = checkpoint["random_states"], checkpoint["figures"]


def training_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The metrics of the last epoch, by the names under which they were logged."""
    logged, others = trainer.callback_metrics, ("time/", "lr-", "warmup/", "test/")
    metrics = {name: value.item() for name, value in logged.items() if "/" in name and not name.startswith(others)}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CheckpointContents):
            metrics = {**callback.metrics, **metrics}
    return metrics


def random_state() -> dict[str, Any]:
    """Tensors, numbers and words only, as everything in a checkpoint; long lists of numbers would be slow to write."""
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
