"""Trains a module that never sets `sync_dist`, with the engine's callbacks, and prints its figures as JSON.

python epochs.py '{"folder": "runs/a", "hook": "on_train_epoch_end"}'       # in the processes that torchrun started
"""

import json
import sys
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
import torch
from plain import DDP, PlainData
from torch import Tensor, nn
from torchmetrics import MeanMetric

from {{ cookiecutter.package_name }}.engine.distributed.devices import resolve_devices
from {{ cookiecutter.package_name }}.engine.distributed.strategies import build_strategy, strategy_options
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.training.callbacks.checkpoint_contents import CheckpointContents
from {{ cookiecutter.package_name }}.engine.training.callbacks.epoch_values import EpochValues
from {{ cookiecutter.package_name }}.engine.warning_filters import IGNORED_WARNINGS, ignore_warnings


class Unsynchronised(pl.LightningModule):
    """Logs as code that was written for one process; `hook` logs a number that differs between ranks."""

    def __init__(self, hook: str | None, synchronised: bool) -> None:
        super().__init__()
        self.hook, self.synchronised = hook, synchronised
        self.net = nn.Linear(16, 4)
        self.train_mean = MeanMetric()

    def _log_all(self, split: str, batch: Any, **options: Any) -> Tensor:
        logits = self.net(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log(f"{split}/loss", loss, batch_size=len(batch[1]), **options)
        self.log(f"{split}/samples", float(len(batch[1])), reduce_fx="sum", **options)
        self.log(f"{split}/most", logits.max(), reduce_fx="max", **options)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._log_all("train", batch, on_step=False, on_epoch=True)
        self.log("train/both", loss, on_step=True, on_epoch=True, batch_size=len(batch[1]))
        self.train_mean.update(loss, weight=len(batch[1]))
        self.log("train/metric", self.train_mean, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log_all("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._log_all("test", batch)

    def _end(self, hook: str) -> None:
        self.log(f"{hook}/same", float(self.current_epoch))
        if hook == self.hook:
            self.log("own", 1.0 + self.global_rank, sync_dist=self.synchronised)

    def on_train_epoch_end(self) -> None:
        self._end("on_train_epoch_end")

    def on_validation_epoch_end(self) -> None:
        self._end("on_validation_epoch_end")

    def on_test_epoch_end(self) -> None:
        self._end("on_test_epoch_end")

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Habits(Unsynchronised):
    """What works in one process; `habit` names it."""

    def __init__(self, habit: str) -> None:
        super().__init__(None, False)
        self.habit, self.automatic_optimization = habit, habit != "loss.backward()"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        is_second = self.global_rank == 1
        if self.habit == "log in one process" and is_second:
            self.log("rare", loss, on_epoch=True)
        if self.habit == "log no sample in the other process":
            self.log("rare", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]) if is_second else 0)
            self.log("second", loss if is_second else 0.0, on_step=False, on_epoch=True, reduce_fx="sum")
        if self.habit == "loss.backward()":
            optimizer: Any = self.optimizers()
            loss.backward()
            optimizer.step()
        return None if self.habit == "None" else loss


class OtherLabels(PlainData):
    """As from a generator without a seed."""

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        self.y = (self.y + self.trainer.global_rank) % 4
        return super().train_dataloader()


class Ended(pl.Callback):
    """Ends the run after a number of steps, as a signal does."""

    def __init__(self, num_steps: int | None) -> None:
        self.num_steps = num_steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.num_steps:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/middle.ckpt")
            raise InterruptedError


def run(
    folder: str,
    hook: str | None = None,
    synchronised: bool = False,
    num_steps: int | None = None,
    ckpt_path: str | None = None,
    habit: str | None = None,
) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    pl.seed_everything(3, workers=True, verbose=False)
    devices = resolve_devices("cpu", None, "ddp")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices.for_trainer(),
        strategy=build_strategy(strategy_options(DDP), devices),
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        max_epochs=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[CheckpointContents({}), EpochValues(), Ended(num_steps)],
    )
    module = Habits(habit) if habit else Unsynchronised(hook, synchronised)
    datamodule = (OtherLabels if habit == "other labels" else PlainData)(batch_size=13)
    try:
        with suppress(InterruptedError):
            trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.endswith("_step")}
        if num_steps is None:
            (tested,) = trainer.test(module, datamodule=datamodule, verbose=False)
            found |= tested
    except UserError as error:
        return {"refused": str(error)}
    return found


if __name__ == "__main__":
    ignore_warnings(*IGNORED_WARNINGS)
    results = [run(**options) for options in json.loads(sys.argv[1])]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print("FOUND " + json.dumps(results))
    if torch.distributed.is_initialized():  # what gloo leaves running can abort an interpreter that ends
        torch.distributed.destroy_process_group()
