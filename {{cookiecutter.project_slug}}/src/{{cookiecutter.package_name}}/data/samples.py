"""Samples in memory, and the two loaders that every strategy reads them through."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..strategies.samplers import EvaluationBatchSampler, TrainingBatchSampler

Batch = tuple[Tensor, Tensor]


class SamplesInMemory(Dataset[Batch]):
    """Inputs `(N, ...)` and labels `(N,)`; a whole batch is fetched by one indexing call, not sample by sample."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.tensor(indices, dtype=torch.long)
        return self.inputs[rows], self.labels[rows]


def _as_fetched(batch: Any) -> Any:
    """`__getitems__` returns a finished batch: there is nothing left to collate."""
    return batch


def training_loader(
    dataset: SamplesInMemory, batch_size: int, seed: int, trainer: pl.Trainer | None, **options: Any
) -> DataLoader[Batch]:
    """`batch_size` counts the samples of one optimiser step over all ranks; this loader yields this rank's part."""
    # `overfit_batches` means the same few batches again and again.
    reshuffle = trainer is None or not trainer.overfit_batches  # type: ignore[attr-defined]
    sampler = TrainingBatchSampler(len(dataset), batch_size, seed, *_place(trainer), reshuffle=reshuffle)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=_as_fetched, **options)


def evaluation_loader(
    dataset: SamplesInMemory, batch_size: int, trainer: pl.Trainer | None, **options: Any
) -> DataLoader[Batch]:
    """Every sample once over all ranks; a batch may hold zero samples where there are more ranks than samples."""
    sampler = EvaluationBatchSampler(len(dataset), batch_size, *_place(trainer))
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=_as_fetched, **options)


def _place(trainer: pl.Trainer | None) -> tuple[int, int]:
    """This process's rank and the number of processes; without a Trainer there is one process."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def pixel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of `(N, C, H, W)` uint8.

    Summed as whole numbers: a sum of floats depends on the number of threads, and so would the trained weights.
    """
    channels = pixels.transpose(0, 1).flatten(1).long()  # (C, N * H * W)
    means = [int(channel.sum()) / len(channel) for channel in channels]
    squares = [int(channel.square().sum()) / len(channel) for channel in channels]
    deviations = [math.sqrt(square - mean**2) for square, mean in zip(squares, means, strict=True)]
    return tuple(means), tuple(deviations)
