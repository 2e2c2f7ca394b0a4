"""Data sets that fetch a batch at a time, and the number of worker processes that read them."""

from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..cores import num_cores
from ..distributed.dealing import sample_generators

Batch = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, Sequence[torch.Generator]], Tensor]

MAX_WORKERS = 8


class Samples(Dataset[Batch]):
    """A data set with `labels` of shape `(N,)`, or `(N, K)` for several labels, that fetches a batch at a time."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        raise NotImplementedError


class SamplesInMemory(Samples):
    """Inputs `(N, ...)` and their labels; one indexing call fetches a batch, which is much faster than one a sample."""

    is_in_memory = True  # not inherited: `SeededFetch` looks once an epoch only whether it draws random numbers

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.tensor(indices, dtype=torch.long)
        return self.inputs.index_select(0, rows), self.labels.index_select(0, rows)


class Augmented(Samples):
    """Samples that are changed at random, differently in each epoch.

    `augment` takes inputs `(B, ...)` and a generator for each of them, the only source of its draws.
    """

    def __init__(self, samples: Samples, augment: Augment) -> None:
        self.samples, self.augment, self.labels = samples, augment, samples.labels

    def __getitems__(self, indices: list[int]) -> Batch:
        inputs, labels = self.samples.__getitems__(indices)
        return self.augment(inputs, sample_generators(indices)), labels


def as_fetched(batch: Batch) -> Batch:
    """The collate function of `Samples`, which return whole batches."""
    return batch


def processes_per_machine(trainer: pl.Trainer | None) -> int:
    return 1 if trainer is None else max(1, trainer.world_size // trainer.num_nodes)


def default_num_workers(trainer: pl.Trainer | None) -> int:
    """The cores of a machine are shared by the processes that train on it."""
    return max(1, min(MAX_WORKERS, num_cores() // processes_per_machine(trainer)))
