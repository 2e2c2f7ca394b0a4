"""Checks before the first step for faults that a training would otherwise meet after hours."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..console import shown
from ..data.samples import MIB, Loader
from ..errors import Fault, UserError
from ..spec import DataSpec
from .callbacks.checkpoint_contents import random_state, set_random_state
from .checkpoint_io import LAST, copy_to_last

NUM_CHECKED = 64  # samples of the training split


def before_training(
    run_dir: Path,
    ckpt_path: str | None,
    datamodule: pl.LightningDataModule,
    model: pl.LightningModule,
    trainer: pl.Trainer,
    rehearse: Callable[[DataSpec, npt.NDArray[Any]], None] | None,
) -> None:
    """Checks on the first rank the disk, the first batch and, with `rehearse`, whether the network can be exported.

    `ckpt_path` is the checkpoint from which the run goes on. The random generators and the number of threads are
    restored afterwards.
    """
    start = Path(ckpt_path or "")
    check_disk(run_dir, trainer, model)
    if start.parent == run_dir / "checkpoints" and start.name != LAST:
        copy_to_last(start)
    with ExitStack() as afterwards:
        afterwards.callback(torch.set_num_threads, torch.get_num_threads())  # loading a TorchScript file sets it
        afterwards.callback(set_random_state, random_state())
        x, _ = first_batch(datamodule)
        if rehearse is not None:
            rehearse(datamodule.spec, x.numpy())  # type: ignore[attr-defined]


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


def first_batch(datamodule: pl.LightningDataModule) -> tuple[Tensor, Tensor]:
    """The first samples of the training split, unshuffled; refuses those that do not fit `datamodule.spec`."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    loader: Any = datamodule.train_dataloader()
    if isinstance(loader, Loader):
        samples: Any = getattr(loader.dataset, "samples", loader.dataset)  # without augmentation
        loader = Loader(samples, batch_sampler=[list(range(min(len(samples), NUM_CHECKED)))])
    x, y = next(iter(loader))
    check_samples(x, y, datamodule.spec)  # type: ignore[attr-defined]
    return x, y


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
