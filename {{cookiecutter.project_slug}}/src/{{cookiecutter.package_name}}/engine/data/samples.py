"""Samples in memory, and the two loaders that every strategy reads them through."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..distributed.samplers import EvaluationBatchSampler, TrainingBatchSampler, WithEpoch, seeded
from ..errors import UserError
from .loader import Batch, Loader, check_shared_memory


class Samples(Dataset[Batch]):
    """Fetched a batch at a time, by `__getitems__`; `labels` is `(N,)`."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        raise NotImplementedError


Augment = Callable[[Tensor, Sequence[torch.Generator]], Tensor]


class SamplesInMemory(Samples):
    """Inputs `(N, ...)` and labels `(N,)`; a whole batch is fetched by one indexing call, not sample by sample."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.tensor(indices, dtype=torch.long)
        return self.inputs.index_select(0, rows), self.labels.index_select(0, rows)


class Augmented(Dataset[Batch]):
    """Samples changed at random, anew each epoch.

    What happens to one depends on the seed, the epoch and its index alone: not on the rank, the worker process or the
    samples before it. `augment` takes inputs `(B, ...)` and a generator for each; it draws from those, and from
    nothing else.
    """

    def __init__(self, samples: Samples, augment: Augment, seed: int) -> None:
        self.samples = samples
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Tensor:
        return self.samples.labels

    def __getitems__(self, places: list[tuple[int, int]]) -> Batch:
        inputs, labels = self.samples.__getitems__([index for _, index in places])
        return self.augment(inputs, [seeded(self.seed, *place) for place in places]), labels


class ResumableLoader(Loader):
    """Lightning keeps its state in each checkpoint: a run that goes on from the middle of an epoch goes on there."""

    def __init__(self, dataset: Dataset[Batch], sampler: TrainingBatchSampler, **options: Any) -> None:
        batches = WithEpoch(sampler) if isinstance(dataset, Augmented) else sampler
        super().__init__(dataset, batch_sampler=batches, **options)
        self.position = sampler
        self.seconds_waited = 0.0  # in this epoch, for batches that were not there yet
        self.resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        state, self.resumed = self.resumed, None
        in_this_epoch = state is not None and state["epoch"] == self.position.epoch
        first = self.position.first = state["num_handed_out"] if state and in_this_epoch else 0
        batches = super().__iter__()
        self.num_handed_out = first
        self.seconds_waited, start = 0.0, time.perf_counter()
        for batch in batches:
            self.seconds_waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.position.epoch, "num_handed_out": self.num_handed_out, **self._split()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Refuses other batches in the middle of an epoch: some samples would be seen twice, and others not at all."""
        split = self._split()
        was = {name: state.get(name, number) for name, number in split.items()}
        num_batches = was["num_samples"] // was["batch_size"] * was["num_steps"]
        if was != split and state["num_handed_out"] < num_batches:
            before, now = (", ".join(f"{name}={value}" for name, value in numbers.items()) for numbers in (was, split))
            raise UserError(
                f"the run was ended in the middle of an epoch with {before}, and would go on with {now}: give the same "
                "data.batch_size, data.micro_batch_size and trainer.devices until its end."
            )
        self.resumed = state

    def _split(self) -> dict[str, int]:
        return {name: getattr(self.position, name) for name in ("num_samples", "batch_size", "num_steps")}


def training_loader(
    dataset: Samples | Augmented, batch_size: int, seed: int, trainer: pl.Trainer | None, **options: Any
) -> DataLoader[Batch]:
    """`batch_size` counts the samples of one optimiser step over all ranks; a batch here is this rank's micro-batch."""
    # `overfit_batches` means the same few batches again and again.
    reshuffle = trainer is None or not trainer.overfit_batches  # type: ignore[attr-defined]
    sampler = TrainingBatchSampler(len(dataset), batch_size, seed, *_place(trainer), _num_steps(trainer), reshuffle)
    spec = getattr(getattr(trainer, "datamodule", None), "spec", None)
    if trainer is not None and spec is not None and options.get("num_workers"):
        on_machine = max(1, trainer.world_size // trainer.num_nodes)
        size = batch_size // (trainer.world_size * sampler.num_steps)
        check_shared_memory(options["num_workers"] * on_machine, spec, size)
    # Its own generator: the loader would draw from the one that dropout uses.
    return ResumableLoader(dataset, sampler, generator=seeded(seed), **_loader_options(trainer, **options))


def evaluation_loader(
    dataset: Samples, batch_size: int, trainer: pl.Trainer | None, **options: Any
) -> DataLoader[Batch]:
    """Every sample once over all ranks; a batch may hold zero samples where there are more ranks than samples."""
    size = -(-batch_size // _num_steps(trainer))  # what is too much at once in training may be so here
    sampler = EvaluationBatchSampler(len(dataset), size, *_place(trainer))
    options = {**_loader_options(trainer, **options), "generator": torch.Generator()}
    return Loader(dataset, batch_sampler=sampler, **options)


def _loader_options(trainer: pl.Trainer | None, num_workers: int = 0, pin_memory: bool | None = None) -> dict[str, Any]:
    """Workers stay from epoch to epoch, and fetch two batches ahead each."""
    if pin_memory is None:
        pin_memory = isinstance(getattr(trainer, "accelerator", None), CUDAAccelerator)
    return {"num_workers": num_workers, "pin_memory": pin_memory, "persistent_workers": num_workers > 0}


def _place(trainer: pl.Trainer | None) -> tuple[int, int]:
    """This process's rank and the number of processes; without a Trainer there is one process."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def _num_steps(trainer: pl.Trainer | None) -> int:
    """Micro-batches of an optimiser step, as `data.micro_batch_size` came to."""
    return 1 if trainer is None else trainer.accumulate_grad_batches


def check_options(batch_size: int, num_workers: int, **fractions: float) -> None:
    if min(fractions.values(), default=1) <= 0 or sum(fractions.values()) >= 1:
        given = " and ".join(f"data.{name}={fraction}" for name, fraction in fractions.items())
        raise UserError(f"{given} leave a split empty: each must be above 0 and their sum below 1.")
    if batch_size < 1:
        raise UserError(f"data.batch_size={batch_size} holds no sample: give 1 or more.")
    if num_workers < 0:
        raise UserError(f"data.num_workers={num_workers} is no number of processes: give 0 or more.")


def check_batch(batch_size: int, num_train: int) -> None:
    if batch_size > num_train:
        raise UserError(
            f"data.batch_size={batch_size} is more than the {num_train} training samples: "
            f"the largest size that works is {num_train}."
        )
