"""Checks before the first step for faults that a training would otherwise meet after hours."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..console import shown
from ..data.samples import Augmented, processes_per_machine
from ..distributed import dealing
from ..distributed.plan import Plan
from ..errors import Fault, UserError
from ..spec import DataSpec
from .callbacks.checkpoint_contents import random_state, set_random_state
from .callbacks.optimization import refused_values
from .checkpoint_io import LAST, copy_to_last

log = logging.getLogger(__name__)

NUM_CHECKED = 64  # samples of the training split
NUM_FETCHED_TWICE = 4
SHARED_MEMORY = Path("/dev/shm")
MIB = 2**20


def before_training(
    run_dir: Path,
    ckpt_path: str | None,
    datamodule: pl.LightningDataModule,
    spec: Any,
    model: pl.LightningModule,
    trainer: pl.Trainer,
    rehearse: Callable[[Any, pl.LightningDataModule], None] | None,
) -> None:
    """Checks on the first rank the disk, the first batch and, with `rehearse`, whether the network can be exported.

    `ckpt_path` is the checkpoint from which the run goes on, `spec` the description of the data, if there is one. The
    random generators and the number of threads are restored afterwards.
    """
    start = Path(ckpt_path or "")
    check_disk(run_dir, trainer, model)
    if start.parent == run_dir / "checkpoints" and start.name != LAST:
        copy_to_last(start)
    with ExitStack() as afterwards:
        afterwards.callback(torch.set_num_threads, torch.get_num_threads())  # loading a TorchScript file sets it
        afterwards.callback(set_random_state, random_state())
        datamodule.trainer = trainer
        datamodule.prepare_data()
        datamodule.setup("fit")
        loader = datamodule.train_dataloader()
        if not isinstance(loader, DataLoader):
            return
        if type(loader.sampler) not in dealing.SAMPLERS_OF_TORCH and not isinstance(spec, DataSpec):
            return  # the data set may have keys that only its sampler knows
        for sentence in random_numbers_out_of_reach(loader):
            log.warning("warning     %s", sentence)
        batch = first_batch(loader)
        if loader.num_workers and isinstance(num_samples := loader.batch_size, int):
            size = sum(values.nbytes for values in dealing.tensors_in(batch))
            check_shared_memory(loader, size / min(num_samples, NUM_CHECKED), trainer)
        if isinstance(spec, DataSpec):
            x, y = batch
            check_samples(x, y, spec)
        if rehearse is not None:
            rehearse(spec, datamodule)


def check_hooks(model: pl.LightningModule, datamodule: pl.LightningDataModule, plan: Plan, tests: bool) -> None:
    """Refuses a model or data without what the run will call, and options that the model cannot follow."""
    needed = [(model, "training_step"), (model, "configure_optimizers"), (datamodule, "train_dataloader")]
    for owner, hook in [*needed, *([(model, "test_step"), (datamodule, "test_dataloader")] if tests else [])]:
        if not is_overridden(hook, owner):
            remedy = ", or set test=false" if hook.startswith("test") else ", as Lightning's documentation says"
            raise UserError(f"{type(owner).__name__} has no {hook}: write the method{remedy}.")
    # A module that asks its Trainer, which is not there yet, is checked when that builds the optimizers.
    with suppress(RuntimeError), refused_values():
        model.configure_optimizers()
    if model.automatic_optimization:
        return
    if plan.trainer.get("gradient_clip_val") is not None:
        raise UserError(
            "trainer.gradient_clip_val cannot follow manual optimisation: call self.clip_gradients in training_step."
        )
    if plan.split is not None and (plan.split.num_steps > 1 or plan.split.is_auto):
        raise UserError("data.micro_batch_size cannot follow manual optimisation: leave it out.")


def check_disk(run_dir: Path, trainer: pl.Trainer, model: pl.LightningModule) -> None:
    """Checks that all checkpoints of the run fit at once: the weights, and two values for each that Adam stores."""
    size = 3 * sum(weight.numel() * weight.element_size() for weight in model.parameters())
    num_saved = sum(max(1, getattr(callback, "save_top_k", 1)) for callback in trainer.checkpoint_callbacks)
    num_files = num_saved + 2  # the previous one, and the one that is being written
    existing = sum(path.stat().st_size for path in run_dir.glob("checkpoints/*.ckpt"))
    needed, free = num_files * size - existing, shutil.disk_usage(run_dir).free
    if trainer.checkpoint_callbacks and free < needed:
        raise Fault(
            f"{shown(run_dir)} has {free / MIB:,.0f} MiB left, and up to {num_files} checkpoints of "
            f"{size / MIB:,.0f} MiB will lie in it: free some, or give paths.log_dir=<folder on another disk>."
        )


def first_batch(loader: DataLoader[Any]) -> Any:
    """The first samples of the training split, unshuffled and without augmentation."""
    samples = loader.dataset.samples if isinstance(loader.dataset, Augmented) else loader.dataset
    unshuffled = DataLoader(samples, NUM_CHECKED, collate_fn=loader.collate_fn)
    return next(iter(dealing.deal(unshuffled, dealing.Share(), "train_dataloader")))


def random_numbers_out_of_reach(loader: DataLoader[Any]) -> Iterator[str]:
    """A sentence for each way in which the training samples draw random numbers that cannot be seeded for a sample.

    Such samples depend on the strategy, on the number of devices and on that of the worker processes.
    """
    if isinstance(loader.dataset, IterableDataset):
        return
    part = dealing.Part(0, list(range(min(NUM_FETCHED_TWICE, len(loader.dataset)))), 0, 0)  # type: ignore[arg-type]
    seeded = dealing.SeededFetch(loader.dataset, loader.collate_fn, seed=0)
    first, second = (seeded.__getitems__(part)[1] for _ in range(2))
    if isinstance(first, UserError):  # the first batch will raise it
        return
    kind = type(loader.dataset).__name__
    if not all(map(_is_same, dealing.tensors_in(first), dealing.tensors_in(second))):
        yield (
            f"{kind} draws random numbers from a generator of its own, which the run's seed does not reach, so its "
            "samples depend on the strategy and the number of worker processes: draw from torch, numpy or random, or "
            "seed that generator in __getitem__ by torch.randint."
        )
    with dealing.generators_seeded(0):
        samples = dealing.fetch(loader.dataset, part.indices)
        states = dealing.generator_states()
        loader.collate_fn(samples)
        if dealing.have_drawn(states):
            yield (
                f"the collate_fn of {kind} draws random numbers, so the samples depend on the strategy and on the "
                "number of devices: draw in __getitem__."
            )


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN included; sparse ones are not compared."""
    is_dense = first.layout == torch.strided
    return not is_dense or (first.shape == second.shape and torch.allclose(first, second, 0, 0, equal_nan=True))


def check_shared_memory(loader: Any, bytes_per_sample: float, trainer: pl.Trainer) -> None:
    """Worker processes hand over batches through shared memory, of which Docker gives 64 MiB by default."""
    if not SHARED_MEMORY.is_dir():
        return
    num_workers = loader.num_workers * processes_per_machine(trainer)
    num_samples = -(-loader.batch_size // (trainer.world_size * trainer.accumulate_grad_batches))  # of a batch
    needed = num_workers * loader.prefetch_factor * num_samples * bytes_per_sample
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise Fault(
            f"the shared memory has {free / MIB:,.0f} MiB left, and {num_workers} processes that read samples need "
            f"{needed / MIB:,.0f} MiB: take fewer with data.num_workers=, or give a container more with --shm-size."
        )


def check_samples(x: Tensor, y: Tensor, spec: DataSpec) -> None:
    shape, dtype = tuple(x.shape[1:]), str(x.dtype).removeprefix("torch.")
    if (shape, dtype) != (spec.input_shape, spec.input_dtype):
        raise UserError(
            f"the first batch holds {dtype} {shape}, but the data's spec says {spec.input_dtype} {spec.input_shape}."
        )
    if len(x) != len(y):
        raise UserError(f"the first batch holds {len(x)} samples and {len(y)} labels.")
    if not torch.isfinite(y if y.is_floating_point() else y.float()).all():
        raise UserError("the first batch holds targets that are NaN or infinite: leave such samples out.")
    low, high = spec.input_range
    # NaN is a gap in a table, which the network fills.
    outside = ((x < low) | (x > high) | torch.isinf(x)).flatten(1).any(1)
    if outside.any():
        bad = int(outside.nonzero()[0])
        raise UserError(f"sample {bad} of the training data holds values outside of {low:g} to {high:g}, its range.")
    if spec.task == "classification" and (wrong := ~np.isin(y.numpy(), range(len(spec.labels)))).any():
        number = int(wrong.nonzero()[0][0])
        raise UserError(
            f"sample {number} of the training data has the label {int(y[number])}, but the {len(spec.labels)} labels "
            f"are counted from 0 to {len(spec.labels) - 1}."
        )
