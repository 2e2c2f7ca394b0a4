"""The DataModule that the data sets of the engine and of a project share."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from ..errors import UserError
from ..spec import DataSpec
from .samples import Augment, Augmented, Batch, Samples, SamplesInMemory, as_fetched, default_num_workers


class SamplesDataModule(pl.LightningDataModule):
    """Loads `samples` by their splits `train`, `val` and `test`; a subclass sets them, and `spec`.

    `augment`, if set, changes training samples at random: see `Augmented`. `num_workers=None` takes as many worker
    processes as there are cores, if samples have to be decoded or augmented. Samples in memory are evaluated without
    any, which would only copy them.
    """

    spec: DataSpec
    samples: Mapping[str, Samples]
    augment: Augment | None = None

    def __init__(
        self,
        batch_size: int,
        seed: int,
        num_workers: int | None,
        pin_memory: bool | None,
        **fractions: float,
    ) -> None:
        super().__init__()
        if any(fraction <= 0 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
            given = " and ".join(f"data.{name}={fraction}" for name, fraction in fractions.items())
            raise UserError(f"{given} leave a split empty: each must be above 0 and their sum below 1.")
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} holds no sample: give 1 or more.")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"data.num_workers={num_workers} is no number of processes: give 0 or more.")
        if seed < 0:
            raise UserError(f"data.seed={seed} is out of range: give 0 or more.")
        self.batch_size, self.seed = batch_size, seed
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def train_dataloader(self) -> DataLoader[Batch]:
        """Leaves out the last incomplete batch; the next epoch's order brings its samples back."""
        samples = self.samples["train"]
        if self.batch_size > len(samples):
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {len(samples)} training samples: "
                f"the largest size that works is {len(samples)}."
            )
        if self.augment is not None:
            samples = Augmented(samples, self.augment)
        generator = torch.Generator().manual_seed(self.seed)
        return self._loader(samples, self.num_workers, shuffle=True, drop_last=True, generator=generator)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader(self.samples["val"])

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader(self.samples["test"])

    def _evaluation_loader(self, samples: Samples) -> DataLoader[Batch]:
        return self._loader(samples, None if isinstance(samples, SamplesInMemory) else self.num_workers)

    def _loader(self, samples: Samples, num_workers: int | None, **options: Any) -> DataLoader[Batch]:
        if num_workers is None:
            num_workers = 0 if isinstance(samples, SamplesInMemory) else default_num_workers(self.trainer)
        is_on_gpu = isinstance(getattr(self.trainer, "accelerator", None), CUDAAccelerator)
        return DataLoader(
            samples,
            self.batch_size,
            collate_fn=as_fetched,  # type: ignore[arg-type]
            num_workers=num_workers,
            pin_memory=is_on_gpu if self.pin_memory is None else self.pin_memory,
            persistent_workers=num_workers > 0,
            **options,
        )


class InMemoryDataModule(SamplesDataModule):
    """A DataModule whose samples are all in memory."""

    samples: dict[str, SamplesInMemory]
