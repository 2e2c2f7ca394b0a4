"""A DataModule whose samples are all in memory."""

from typing import Literal

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from ..spec import DataSpec
from .loader import Batch
from .samples import (
    Augment,
    Augmented,
    SamplesInMemory,
    check_batch,
    check_options,
    evaluation_loader,
    training_loader,
)


class InMemoryDataModule(pl.LightningDataModule):
    """Loads `samples` by their splits `train`, `val` and `test`; a subclass sets them, and `spec`.

    `augment`, if set, changes training samples at random: see `Augmented`.
    """

    spec: DataSpec
    augment: Augment | None = None

    def __init__(
        self,
        batch_size: int,
        micro_batch_size: int | Literal["auto"] | None,
        seed: int,
        num_workers: int,
        pin_memory: bool | None,
        **fractions: float,
    ) -> None:
        super().__init__()
        check_options(batch_size, num_workers, **fractions)
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.loader_options = {"num_workers": num_workers, "pin_memory": pin_memory}

    @property
    def samples(self) -> dict[str, SamplesInMemory]:
        """The samples of each split."""
        return self._samples

    @samples.setter
    def samples(self, samples: dict[str, SamplesInMemory]) -> None:
        if len(samples["train"]):  # a table that is for the test alone has none
            check_batch(self.batch_size, len(samples["train"]))
        self._samples = samples

    def train_dataloader(self) -> DataLoader[Batch]:
        samples: SamplesInMemory | Augmented = self.samples["train"]
        if self.augment is not None:
            samples = Augmented(self.samples["train"], self.augment, self.seed)
        return training_loader(samples, self.batch_size, self.seed, self.trainer, **self.loader_options)

    def val_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["val"], self.batch_size, self.trainer, **self.loader_options)

    def test_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["test"], self.batch_size, self.trainer, **self.loader_options)
