"""The loop that one would write by hand in plain torch, on one device or as one rank of DistributedDataParallel.

A good one: the configured optimizer, which is a fused one, data in memory fetched by one indexing call, no figure read
from the device before the end of an epoch. It keeps what the project keeps, the loss and what the task tallies, and
writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.samples import Batch, SamplesInMemory
from ..distributed.samplers import seeded
from ..training.base_module import BaseModule

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")


class HandWrittenLoop:
    """`batch_size` counts the samples of a step over all ranks; `precision` is one of `PRECISIONS`."""

    def __init__(
        self,
        model: BaseModule,
        datamodule: pl.LightningDataModule,
        device: torch.device,
        batch_size: int,
        seed: int,
        precision: str = "32-true",
        clip_norm: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.device, self.batch_size, self.seed, self.clip_norm = device, batch_size, seed, clip_norm
        self.rank, self.world_size, self.model = rank, world_size, model
        if precision == "64-true":
            model.double()
        if model.channels_last:
            model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
        net: nn.Module = model.to(device).net
        if model.compiled:
            net.compile()
        self.optimizer = model.build_optimizer()
        self.scheduler = None if model.make_scheduler is None else model.make_scheduler(self.optimizer)
        if world_size > 1:
            indices = None if device.index is None else [device.index]
            net = DistributedDataParallel(net, device_ids=indices, gradient_as_bucket_view=True)
        self.net = net
        dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
        self.autocast = torch.autocast(device.type, dtype) if precision.endswith("mixed") else nullcontext()
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
        self.loaders = {"train": datamodule.train_dataloader(), "val": datamodule.val_dataloader()}

    def epoch(self, number: int, train_batches: int, val_batches: int) -> dict[str, float]:
        """At most so many batches of training and of validation; the mean loss and figure of both, over all ranks."""
        self.net.train()
        self.model.hold_frozen()
        train = self._means(self._pass(islice(self._training_batches(number), train_batches), training=True))
        if self.scheduler is not None:
            self.scheduler.step()
        self.net.eval()
        with torch.inference_mode():
            val = self._means(self._pass(islice(self._validation_batches(), val_batches), training=False))
        figure = self.model.train_metric
        names = ("train/loss", f"train/{figure}", "val/loss", f"val/{figure}")
        return dict(zip(names, (*train, *val), strict=True))

    def _pass(self, batches: Iterable[Batch], training: bool) -> Tensor:
        """Sums over the samples: loss, what the task tallies, and how many there were."""
        loss_sum, figure_sum, num_samples = self._zero(), self._zero(), 0
        for x, y in batches:
            with self.autocast:
                outputs = self.net(x)
                loss = self.model.batch_loss(outputs, y, training)
            if training:
                self._update(loss)
            loss_sum.add_(loss.detach(), alpha=len(y))
            figure_sum = figure_sum + self.model.metric_sum(outputs.detach(), y)
            num_samples += len(y)
        return torch.stack([loss_sum, figure_sum, self._zero() + num_samples])

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(loss))
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _means(self, sums: Tensor) -> tuple[float, float]:
        if self.world_size > 1:
            torch.distributed.all_reduce(sums)
        loss, figure_sum, count = sums
        mean = self.model.metric_from_mean(figure_sum / count.clamp(min=1))
        return float(loss / count.clamp(min=1)), float(mean)

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.device)

    def _training_batches(self, epoch: int) -> Iterator[Batch]:
        """By a random order that all ranks share; data that is not in memory comes from the project's own loader."""
        loader = self.loaders["train"]
        if not isinstance(loader.dataset, SamplesInMemory):
            loader.batch_sampler.sampler.set_epoch(epoch)
            return self._moved(loader)
        order = torch.randperm(len(loader.dataset), generator=seeded(self.seed, epoch))
        stops = range(self.batch_size, len(order) + 1, self.batch_size)
        rows = (order[stop - self.batch_size + self.rank : stop : self.world_size] for stop in stops)
        return self._moved(_fetched(loader.dataset, rows))

    def _validation_batches(self) -> Iterator[Batch]:
        loader = self.loaders["val"]
        if not isinstance(loader.dataset, SamplesInMemory):
            return self._moved(loader)
        num_samples = len(loader.dataset)
        starts = range(0, num_samples, self.batch_size)
        rows = (slice(start + self.rank, start + self.batch_size, self.world_size) for start in starts)
        return self._moved(_fetched(loader.dataset, rows))

    def _moved(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for x, y in batches:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def _fetched(samples: SamplesInMemory, rows: Iterable[Any]) -> Iterator[Batch]:
    for of_batch in rows:
        yield samples.inputs[of_batch], samples.labels[of_batch]
