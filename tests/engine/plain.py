"""Trains plain Lightning code, without anything of the engine's but its strategy, and prints what came out as JSON.

python plain.py '{"num_steps": 2, "max_epochs": 3}'       # in the processes that torchrun or the caller started
"""

import faulthandler
import json
import random
import sys
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler, random_split
from torchmetrics.classification import MulticlassAccuracy

from {{ cookiecutter.package_name }}.engine import loss_normalizer
from {{ cookiecutter.package_name }}.engine.distributed.devices import resolve_devices
from {{ cookiecutter.package_name }}.engine.distributed.strategies import build_strategy, strategy_options
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.warning_filters import IGNORED_WARNINGS, ignore_warnings

HANGS = 300  # seconds; all runs of a test take one of them
DDP = {
    "name": "ddp",
    "find_unused_parameters": False,
    "gradient_as_bucket_view": True,
    "static_graph": False,
    "bucket_cap_mb": 25,
    "compression": "none",
    "powersgd_rank": 1,
    "powersgd_start_step": 2,
    "max_restarts": 0,
}
FSDP = {
    "name": "fsdp",
    "min_num_weights": 200,
    "layer_classes": None,
    "activation_checkpointing": False,
    "cpu_offload": False,
    "max_restarts": 0,
}
STRATEGIES: dict[str, dict[str, Any]] = {"ddp": DDP, "fsdp": FSDP}


class NoisyRows(Dataset[tuple[Tensor, Tensor]]):
    """Rows `(16,)` that change at random, by all three generators, and their labels."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.x[row] + 0.1 * torch.randn(16) * random.random() + 0.01 * float(np.random.normal()), self.y[row]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """The rows one after the other, every n-th of them in a shard."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Any:
        return zip(self.x, self.y, strict=True)

    def shard(self, rank: int, world_size: int) -> "Stream":
        return Stream(self.x[rank::world_size], self.y[rank::world_size])


class PlainData(pl.LightningDataModule):
    """97 samples for training, 33 for validation and `num_test` for the test."""

    def __init__(
        self, kind: str = "noisy", batch_size: int = 32, num_workers: int = 0, num_train: int = 97, num_test: int = 41
    ) -> None:
        super().__init__()
        self.kind, self.batch_size, self.num_test = kind, batch_size, num_test
        self.options: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
        generator = torch.Generator().manual_seed(0)
        num_rows = max(171, num_train)
        self.x = torch.randn(num_rows, 16, generator=generator)
        self.y = torch.randint(0, 4, (num_rows,), generator=generator)
        self.num_train = num_train

    def train_dataloader(self) -> Any:
        x, y = self.x[: self.num_train], self.y[: self.num_train]
        if self.kind == "iterable":
            return DataLoader(Stream(x, y), batch_size=self.batch_size, **self.options)
        if self.kind == "weighted":
            sampler = WeightedRandomSampler(torch.arange(1.0, len(x) + 1), 60)
            return DataLoader(TensorDataset(x, y), batch_size=self.batch_size, sampler=sampler, **self.options)
        rows: Dataset[Any] = NoisyRows(x, y)
        if self.kind == "split":
            rows = random_split(rows, [len(x) - 10, 10], torch.Generator().manual_seed(1))[0]
        return DataLoader(rows, batch_size=self.batch_size, shuffle=True, **self.options)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x[97:130], self.y[97:130]), batch_size=16)

    def test_dataloader(self) -> Any:
        rows = slice(130, 130 + self.num_test)
        return DataLoader(TensorDataset(self.x[rows], self.y[rows]), batch_size=13)


class PlainModule(pl.LightningModule):
    """As in Lightning's documentation."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most = most  # batches of an epoch, of which the others are skipped
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.train_acc = MulticlassAccuracy(4, average="micro")
        self.val_acc = MulticlassAccuracy(4, average="micro")
        self.test_acc = MulticlassAccuracy(4, average="micro")
        self.seen: list[int] = []  # sizes of the training batches, as in Lightning's "training_step_outputs"

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.most else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.train_acc(logits, y)
        self.seen.append(len(y))
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        self.log("train/samples", float(len(y)), on_step=False, on_epoch=True, sync_dist=True, reduce_fx="sum")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", self.val_acc, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", self.test_acc, batch)

    def _evaluate(self, split: str, accuracy: MulticlassAccuracy, batch: Any) -> None:
        logits = self.net(batch[0])
        accuracy(logits, batch[1])
        loss = nn.functional.cross_entropy(logits, batch[1])
        count = torch.tensor(float(len(batch[1])))
        self.log(f"{split}/loss", loss, sync_dist=True, batch_size=len(batch[1]))
        self.log(f"{split}/acc", accuracy)
        self.log(f"{split}/samples", count, reduce_fx="sum", sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class TwoNetworks(PlainModule):
    """Manual optimisation with two optimizers, whose parameters are in another order than those of the module."""

    def __init__(self, most: int | None) -> None:
        super().__init__(most)
        self.automatic_optimization = False
        self.shift = nn.Sequential(nn.Linear(16, 16), nn.Tanh())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:  # the second one meets weights that the first has changed
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x + self.shift(x)), y)
            for each in optimizers:
                each.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.train_acc(self.net(x), y)
        self.seen.append(len(y))
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        backwards = [{"params": [weight]} for weight in reversed([*self.net.parameters()])]
        return [torch.optim.AdamW(backwards, lr=0.01), torch.optim.SGD(self.shift.parameters(), lr=0.1, momentum=0.9)]


class Unshardable(PlainModule):
    """`kind` names what strategy=fsdp cannot shard or gather, or what it would lose; or a count of some parts alone."""

    def __init__(self, kind: str) -> None:
        super().__init__(None)
        self.kind = kind
        if kind in ("scalar", "loose"):
            self.own = nn.Parameter(torch.tensor(1.0) if kind == "scalar" else torch.ones(4))
        if kind == "tied":
            self.other = nn.Sequential(nn.Linear(16, 32))
            self.other[0].weight = self.net[0].weight  # type: ignore[union-attr,assignment]
        self.kept = list(self.net.parameters())
        self.automatic_optimization = kind not in ("loose", "tied")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        net: Any = self.net
        if self.kind == "writes":
            with torch.no_grad():
                net[0].bias.mul_(0.5)
        if self.kind == "sometimes" and batch_idx % 2:
            loss_normalizer(batch, lambda batch: len(batch[1]))
        logits = nn.functional.linear(batch[0], net[0].weight)[:, :4] if self.kind == "uncalled" else net(batch[0])
        return nn.functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.kept if self.kind == "kept" else self.parameters(), lr=0.1)


def build_module(kind: str, most: int | None) -> PlainModule:
    if kind in ("plain", "two networks"):
        return (TwoNetworks if kind == "two networks" else PlainModule)(most)
    return Unshardable(kind)


def run(
    num_steps: int = 1,
    data: dict[str, Any] | None = None,
    most: int | None = None,
    strategy: str = "ddp",
    sharding: dict[str, Any] | None = None,
    module: str = "plain",
    ckpt_path: str | None = None,
    save: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    pl.seed_everything(3, workers=True, verbose=False)
    devices = resolve_devices("cpu", None, "ddp")
    section = STRATEGIES[strategy] | (sharding or {})
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices.for_trainer(),
        strategy=build_strategy(strategy_options(section), devices, module == "two networks"),
        use_distributed_sampler=False,
        accumulate_grad_batches=num_steps,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"max_epochs": 3, **options},  # type: ignore[arg-type]
    )
    model, datamodule = build_module(module, most), PlainData(**(data or {}))
    try:
        trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    except UserError as error:
        return {"refused": str(error)}
    if save is not None:
        trainer.save_checkpoint(save)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (tested,) = trainer.test(model, datamodule=datamodule, verbose=False)
    whole = [weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    weights = float(sum(weight.detach().abs().sum() for weight in whole))
    seen = float(trainer.strategy.reduce(torch.tensor(float(sum(model.seen))), reduce_op="sum"))
    drawn = float(torch.rand(()))  # of the global generator, which nothing may have moved
    return {**found, **tested, "weights": weights, "steps": trainer.global_step, "seen": seen, "drawn": drawn}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(HANGS, exit=True)  # a process that hangs shows where, and ends
    ignore_warnings(*IGNORED_WARNINGS)
    results = [run(**options) for options in json.loads(sys.argv[1])]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print("FOUND " + json.dumps(results))
    if torch.distributed.is_initialized():  # what gloo leaves running can abort an interpreter that ends
        torch.distributed.destroy_process_group()
