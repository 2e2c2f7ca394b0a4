"""`data=digits`: 1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn, so nothing is downloaded."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from ..refusal import Refusal
from .loader import Batch
from .pixels import pixel_statistics
from .samples import Augmented, SamplesInMemory, check_batch, check_options, evaluation_loader, training_loader
from .spec import DataSpec
from .splits import stratified
from .targets import counts_of


class DigitsDataModule(pl.LightningDataModule):
    """Pictures `(N, 1, 8, 8)`, uint8 from 0 (paper) to 255 (ink), and labels `(N,)`, int64.

    `split_seed` alone decides which sample belongs to which split, so that another `seed` never moves a sample from
    the test split into training.
    """

    def __init__(
        self,
        batch_size: int = 64,
        micro_batch_size: int | Literal["auto"] | None = None,
        max_shift: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        check_options(batch_size, num_workers, val_fraction=val_fraction, test_fraction=test_fraction)
        if not 0 <= max_shift <= 8:
            raise Refusal(f"data.max_shift={max_shift} pixels is out of range: give 0 (no change) to 8.")
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.max_shift = max_shift
        self.loader_options = {"num_workers": num_workers, "pin_memory": pin_memory}
        self.samples = _split(val_fraction, test_fraction, split_seed)
        check_batch(batch_size, len(self.samples["train"]))
        mean, std = pixel_statistics(self.samples["train"].inputs)
        self.spec = DataSpec(
            name="digits",
            task="classification",
            input_shape=(1, 8, 8),
            input_dtype="uint8",
            input_range=(0.0, 255.0),
            labels=tuple(str(digit) for digit in range(10)),
            mean=mean,
            std=std,
            label_counts=counts_of(self.samples["train"].labels, 10),
            description="Handwritten digits of 43 people, 1,797 pictures of 8 x 8 pixels that ship with scikit-learn.",
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        samples: SamplesInMemory | Augmented = self.samples["train"]
        if self.max_shift:
            samples = Augmented(self.samples["train"], partial(shifted, most=self.max_shift), self.seed)
        return training_loader(samples, self.batch_size, self.seed, self.trainer, **self.loader_options)

    def val_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["val"], self.batch_size, self.trainer, **self.loader_options)

    def test_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["test"], self.batch_size, self.trainer, **self.loader_options)


def shifted(pictures: Tensor, generators: Sequence[torch.Generator], most: int) -> Tensor:
    """`(B, C, H, W)`, each moved by up to `most` pixels along each axis; what comes in at the edge is 0."""
    height, width = pictures.shape[-2:]
    moved = []
    for padded, generator in zip(F.pad(pictures, (most, most, most, most)), generators, strict=True):
        down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
        moved.append(padded[..., down : down + height, right : right + width])
    return torch.stack(moved)


def _split(val_fraction: float, test_fraction: float, seed: int) -> dict[str, SamplesInMemory]:
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]  # (N, 1, 8, 8)
    rows = stratified(digits.target, val_fraction, test_fraction, seed)
    return {
        split: SamplesInMemory(torch.from_numpy(pixels[of_split]), torch.from_numpy(digits.target[of_split]).long())
        for split, of_split in rows.items()
    }
