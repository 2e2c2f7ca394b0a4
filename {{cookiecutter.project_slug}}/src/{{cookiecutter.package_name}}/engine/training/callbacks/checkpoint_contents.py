"""What a checkpoint holds beside what Lightning stores: plain data only."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.callbacks import Callback
from torchmetrics import Metric


class CheckpointContents(Callback):
    """Stores in each checkpoint `project`, which `evaluate` and `export` need beside the weights, and what a run needs
    to be continued: of every rank the random state and what it has logged in this epoch, and the figures of the last.

    It also gives each rank random numbers of its own.
    """

    def __init__(self, project: dict[str, Any]) -> None:
        self.project = project
        self.metrics: dict[str, float] = {}  # for a run that is continued without an epoch left to train
        self.random_states: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []  # of each rank, in the epoch that is continued

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = trainer.global_rank
        if rank < len(self.random_states):
            set_random_state(self.random_states[rank])
        elif rank > 0:  # all ranks begin with the same seed, and what a module draws itself would be the same on each
            torch.manual_seed(torch.initial_seed() + rank)
        self.random_states = []
        self.logged = self.logged[rank : rank + 1]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.logged = []  # an epoch that is continued does not start

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        for states in self.logged:
            for name, state in states.pop("metrics", {}).items():
                vars(pl_module.get_submodule(name)).update(move_data_to_device(state, pl_module.device))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        for states in self.logged:
            for name in states["results"].keys() & _results(trainer).keys():
                _add(_results(trainer)[name], move_data_to_device(states["results"].pop(name), pl_module.device))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = _of_all_ranks(trainer, random_state())
        logged = _of_all_ranks(trainer, _logged(trainer, pl_module))
        figures = training_metrics(trainer)
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        checkpoint.update(project=self.project, random_states=states, logged=logged, figures=figures, monitor=monitor)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        then, now = (project.get("config", {}).get("seed") for project in (checkpoint["project"], self.project))
        self.random_states = checkpoint["random_states"] if then == now else []
        self.metrics = checkpoint["figures"]
        self.logged = checkpoint["logged"]


def _of_all_ranks(trainer: pl.Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    states = [own] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, own)
    return states


def _results(trainer: pl.Trainer) -> dict[str, Any]:
    """What `self.log` was given in the training steps of this epoch; private in Lightning 2.6."""
    return trainer.fit_loop.epoch_loop._results


def _logged(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """The states of the figures and metrics of the training so far in this epoch, as plain data; none at its end.

    Lightning leaves both out, so that the figures of a resumed epoch would be those of its rest.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    if trainer.is_last_batch or progress.processed == progress.ready:
        return {"results": {}, "metrics": {}}
    evaluated = {id(result.value) for result in trainer.fit_loop.epoch_loop.val_loop._results.values()}
    logged = {name: result for name, result in _results(trainer).items() if result.is_tensor and not result.has_reset}
    metrics = {
        name: _state(part) | {"_update_count": part.update_count}
        for name, part in module.named_modules()
        if isinstance(part, Metric) and part.update_count and id(part) not in evaluated
    }
    return {"results": {name: _state(result) for name, result in logged.items()}, "metrics": metrics}


def _state(metric: Metric) -> dict[str, Any]:
    values = {name: getattr(metric, name) for name in metric._defaults}
    return move_data_to_device(values, torch.device("cpu"))  # type: ignore[no-any-return]


def _add(result: Any, before: dict[str, Any]) -> None:
    """Adds what was logged before to a result, which already holds one step's value."""
    is_sum = result.meta.is_mean_reduction or result.meta.is_sum_reduction
    for name, value in before.items():
        setattr(result, name, (torch.add if is_sum else result.meta.reduce_fx)(value, getattr(result, name)))


def training_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The metrics of the last epoch, by the names under which they were logged."""
    logged, others = trainer.callback_metrics, ("time/", "lr-", "warmup/", "test")
    metrics = {name: value.item() for name, value in logged.items() if not name.startswith(others)}
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
