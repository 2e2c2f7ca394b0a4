"""Pictures of noise in memory, as many and as large as a measurement needs, with labels that can be learned."""

import lightning.pytorch as pl
import torch
from digit_classifier.engine.data.pixel_statistics import pixel_statistics
from digit_classifier.engine.data.samples import Batch, SamplesInMemory, evaluation_loader, training_loader
from digit_classifier.engine.spec import DataSpec
from torch.utils.data import DataLoader


class PicturesDataModule(pl.LightningDataModule):
    """Pictures `(N, 1, side, side)`, uint8; the label is the brightest of the first ten pixels."""

    def __init__(
        self,
        num_samples: int = 12_800,
        num_val: int = 1_280,
        side: int = 28,
        batch_size: int = 128,
        micro_batch_size: int | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (num_samples + num_val, 1, side, side)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        labels = pixels.flatten(1)[:, :10].argmax(dim=1)
        self.samples = {
            "train": SamplesInMemory(pixels[:num_samples], labels[:num_samples]),
            "val": SamplesInMemory(pixels[num_samples:], labels[num_samples:]),
        }
        self.batch_size, self.seed = batch_size, seed
        mean, std = pixel_statistics(pixels[:100])
        self.spec = DataSpec(
            name="pictures",
            task="classification",
            input_shape=shape[1:],
            input_dtype="uint8",
            input_range=(0.0, 255.0),
            labels=tuple(str(number) for number in range(10)),
            mean=mean,
            std=std,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        return training_loader(self.samples["train"], self.batch_size, self.seed, self.trainer)

    def val_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["val"], self.batch_size, self.trainer)
