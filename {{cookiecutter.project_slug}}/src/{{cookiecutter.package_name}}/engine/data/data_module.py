"""The DataModule that the data sets of the engine and of a project share."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from ..errors import UserError
from ..spec import DataSpec
from .samples import (
    Augment,
    Augmented,
    Batch,
    Samples,
    SamplesInMemory,
    default_num_workers,
    evaluation_loader,
    training_loader,
)


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
        micro_batch_size: int | Literal["auto"] | None,
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
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def train_dataloader(self) -> DataLoader[Batch]:
        samples: Samples | Augmented = self.samples["train"]
        if self.augment is not None:
            samples = Augmented(self.samples["train"], self.augment, self.seed)
        options = self._loader_options(samples, self.num_workers)
        return training_loader(samples, self.batch_size, self.seed, self.trainer, **options)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader(self.samples["val"])

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader(self.samples["test"])

    def _evaluation_loader(self, samples: Samples) -> DataLoader[Batch]:
        options = self._loader_options(samples, None if isinstance(samples, SamplesInMemory) else self.num_workers)
        return evaluation_loader(samples, self.batch_size, self.trainer, **options)

    def _loader_options(self, samples: Samples | Augmented, num_workers: int | None) -> dict[str, Any]:
        if num_workers is None:
            num_workers = 0 if isinstance(samples, SamplesInMemory) else default_num_workers(self.trainer)
        return {"num_workers": num_workers, "pin_memory": self.pin_memory}


class InMemoryDataModule(SamplesDataModule):
    """A DataModule whose samples are all in memory."""

    samples: dict[str, SamplesInMemory]
