"""Data sets that fetch a batch at a time, and the two loaders through which every strategy reads them."""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..distributed.samplers import EvaluationBatchSampler, TrainingBatchSampler, WithEpoch, seeded
from ..errors import Fault, UserError, is_raised_by_sample, lost_worker, one_line
from ..spec import DataSpec

Batch = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, Sequence[torch.Generator]], Tensor]

SHARED_MEMORY = Path("/dev/shm")
MIB = 2**20
PREFETCH_FACTOR = 2  # batches that each worker process fetches ahead, torch's default
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

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.tensor(indices, dtype=torch.long)
        return self.inputs.index_select(0, rows), self.labels.index_select(0, rows)


class Augmented(Dataset[Batch]):
    """Samples that are changed at random, differently in each epoch.

    The change depends on the seed, the epoch and the sample's index alone: not on the rank, the worker process or the
    samples before it. `augment` takes inputs `(B, ...)` and a generator for each of them, the only source of its draws.
    """

    def __init__(self, samples: Samples, augment: Augment, seed: int) -> None:
        self.samples, self.augment, self.seed = samples, augment, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """`pairs` of epoch and index, as `WithEpoch` yields them."""
        inputs, labels = self.samples.__getitems__([index for _, index in pairs])
        return self.augment(inputs, [seeded(self.seed, *pair) for pair in pairs]), labels


class Loader(DataLoader[Batch]):
    """Loads batches of a data set whose `__getitems__` returns them collated; names a sample that cannot be read."""

    def __init__(self, dataset: Dataset[Batch], **options: Any) -> None:
        super().__init__(dataset, collate_fn=_identity, **options)
        self.num_delivered = 0  # batches of this pass, without those that worker processes have fetched ahead
        self.seconds_waited = 0.0  # in this pass, for batches that were not there yet

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """A generator, because Lightning sets the epoch and a resumed state between `iter()` and the first batch."""
        self.num_delivered, self.seconds_waited = self._first_batch(), 0.0
        if self.num_workers:
            sys.unraisablehook = report_unless_lost_worker
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except UserError:
                raise
            except Exception as error:  # a data set may raise anything
                raise self._fault(error) from error
            self.seconds_waited += time.perf_counter() - start
            self.num_delivered += 1
            yield batch

    def _first_batch(self) -> int:
        """The number of the batch that the next pass begins with."""
        return 0

    def sample_indices(self, batch_idx: int) -> list[int]:
        """The samples of a batch of this pass, by their indices in the data set."""
        return [_index(key) for key in self._keys(batch_idx)]

    def _keys(self, batch_idx: int) -> list[Any]:
        return next(islice(iter(self.batch_sampler), batch_idx, None), [])  # type: ignore[arg-type]

    def _fault(self, error: Exception) -> UserError:
        if (lost := lost_worker(error, self.num_workers)) is not None:
            return lost
        keys = self._keys(self.num_delivered)
        unreadable = [_index(key) for key in keys if not self._is_readable(key)]
        named = f"sample {unreadable[0]}" if unreadable else f"one of the samples {[*map(_index, keys)]}"
        if is_raised_by_sample(error):  # in a worker process: its traceback ends with the error
            reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        else:
            reason = f"{type(error).__name__}: {one_line(error)}"
        return Fault(f"{named} of the {len(self.dataset)} of its split cannot be read: {reason}.")  # type: ignore[arg-type]

    def _is_readable(self, key: Any) -> bool:
        try:
            self.dataset.__getitems__([key])  # type: ignore[attr-defined]
        except Exception:
            return False
        return True


def report_unless_lost_worker(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints an error that was raised in a destructor, except that of a lost worker.

    torch raises that one wherever the main thread is, and Python can only print it in a destructor. The loader notices
    the loss itself within seconds.
    """
    error = unraisable.exc_value
    if not (isinstance(error, Exception) and lost_worker(error)):
        sys.__unraisablehook__(unraisable)


def _index(key: Any) -> int:
    """Samplers yield indices, or for augmented samples pairs of epoch and index."""
    return int(key[1] if isinstance(key, tuple) else key)


def _identity(batch: Any) -> Any:
    return batch


class ResumableLoader(Loader):
    """A training loader whose state Lightning stores in each checkpoint, so that a run resumes within an epoch."""

    def __init__(self, dataset: Dataset[Batch], sampler: TrainingBatchSampler, **options: Any) -> None:
        batches = WithEpoch(sampler) if isinstance(dataset, Augmented) else sampler
        super().__init__(dataset, batch_sampler=batches, **options)
        self.position = sampler
        self.resumed: dict[str, int] | None = None

    def _first_batch(self) -> int:
        state, self.resumed = self.resumed, None
        is_same_epoch = state is not None and state["epoch"] == self.position.epoch
        self.position.first = state["num_delivered"] if state and is_same_epoch else 0
        return self.position.first

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.position.epoch, "num_delivered": self.num_delivered, **self._split()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Refuses other batches within an epoch: some samples would be seen twice, and others not at all."""
        split = self._split()
        was = {name: state[name] for name in split}
        num_batches = was["num_samples"] // was["batch_size"] * was["num_steps"]
        if was != split and state["num_delivered"] < num_batches:
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
    if batch_size > len(dataset):
        raise UserError(
            f"data.batch_size={batch_size} is more than the {len(dataset)} training samples: "
            f"the largest size that works is {len(dataset)}."
        )
    # `overfit_batches` means the same few batches again and again.
    reshuffle = trainer is None or not trainer.overfit_batches  # type: ignore[attr-defined]
    sampler = TrainingBatchSampler(len(dataset), batch_size, seed, *_rank(trainer), _num_steps(trainer), reshuffle)
    spec = getattr(getattr(trainer, "datamodule", None), "spec", None)
    if trainer is not None and spec is not None and options.get("num_workers"):
        size = batch_size // (trainer.world_size * sampler.num_steps)
        check_shared_memory(options["num_workers"] * _processes_per_machine(trainer), spec, size)
    # Its own generator: the loader would draw from the one that dropout uses.
    return ResumableLoader(dataset, sampler, generator=seeded(seed), **_loader_options(trainer, **options))


def evaluation_loader(
    dataset: Samples, batch_size: int, trainer: pl.Trainer | None, **options: Any
) -> DataLoader[Batch]:
    """Every sample once over all ranks; a batch may hold zero samples if there are more ranks than samples."""
    size = -(-batch_size // _num_steps(trainer))  # a batch too large for a device in training may be so here
    sampler = EvaluationBatchSampler(len(dataset), size, *_rank(trainer))
    return Loader(dataset, batch_sampler=sampler, generator=torch.Generator(), **_loader_options(trainer, **options))


def _loader_options(trainer: pl.Trainer | None, num_workers: int = 0, pin_memory: bool | None = None) -> dict[str, Any]:
    if pin_memory is None:
        pin_memory = isinstance(getattr(trainer, "accelerator", None), CUDAAccelerator)
    return {"num_workers": num_workers, "pin_memory": pin_memory, "persistent_workers": num_workers > 0}


def _rank(trainer: pl.Trainer | None) -> tuple[int, int]:
    """This process's rank and the number of processes; without a Trainer there is one process."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def _num_steps(trainer: pl.Trainer | None) -> int:
    """The number of micro-batches of an optimiser step."""
    return 1 if trainer is None else trainer.accumulate_grad_batches


def _processes_per_machine(trainer: pl.Trainer | None) -> int:
    return 1 if trainer is None else max(1, trainer.world_size // trainer.num_nodes)


def num_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_num_workers(trainer: pl.Trainer | None) -> int:
    """The cores of a machine are shared by the processes that train on it."""
    return max(1, min(MAX_WORKERS, num_cores() // _processes_per_machine(trainer)))


def check_shared_memory(num_workers: int, spec: DataSpec, batch_size: int) -> None:
    """Worker processes hand over batches through shared memory, of which Docker gives 64 MiB by default."""
    if not SHARED_MEMORY.is_dir():
        return
    sample = math.prod(spec.input_shape) * np.dtype(spec.input_dtype).itemsize
    needed, free = num_workers * PREFETCH_FACTOR * batch_size * sample, shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise Fault(
            f"the shared memory has {free / MIB:,.0f} MiB left, and {num_workers} processes that read samples need "
            f"{needed / MIB:,.0f} MiB: take fewer with data.num_workers=, or give a container more with --shm-size."
        )
