"""`data=digits`: 1,797 handwritten digits of 8 x 8 pixels, which ship with scikit-learn."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from ..engine import DataSpec, InMemoryDataModule, SamplesInMemory, UserError


class DigitsDataModule(InMemoryDataModule):
    """Pictures `(N, 1, 8, 8)`, uint8 from 0 (paper) to 255 (ink), and labels `(N,)`, int64.

    The split depends on `split_seed` alone, so that another `seed` never moves a sample from the test split into
    training.
    """

    def __init__(
        self,
        batch_size: int = 64,
        max_shift: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        super().__init__(batch_size, seed, num_workers, pin_memory, **fractions)
        if not 0 <= max_shift <= 8:
            raise UserError(f"data.max_shift={max_shift} pixels is out of range: give 0 (no change) to 8.")
        if max_shift:
            self.augment = partial(shifted, most=max_shift)
        self.samples = _split(val_fraction, test_fraction, split_seed)
        pixels = self.samples["train"].inputs.long()  # sums of whole numbers do not depend on the number of threads
        mean = pixels.sum().item() / pixels.numel()
        std = math.sqrt(pixels.square().sum().item() / pixels.numel() - mean**2)
        self.spec = DataSpec(
            name="digits",
            task="classification",
            input_shape=(1, 8, 8),
            input_dtype="uint8",
            input_range=(0.0, 255.0),
            labels=tuple(str(digit) for digit in range(10)),
            mean=(mean,),
            std=(std,),
            label_counts=tuple(self.samples["train"].labels.bincount(minlength=10).tolist()),
            description="Handwritten digits of 43 people, 1,797 pictures of 8 x 8 pixels that ship with scikit-learn.",
        )


def shifted(pictures: Tensor, generators: Sequence[torch.Generator], most: int) -> Tensor:
    """Moves each picture of `(B, C, H, W)` by up to `most` pixels along each axis; new pixels at the edge are 0."""
    height, width = pictures.shape[-2:]
    moved = []
    for padded, generator in zip(F.pad(pictures, (most, most, most, most)), generators, strict=True):
        down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
        moved.append(padded[..., down : down + height, right : right + width])
    return torch.stack(moved)


def _split(val_fraction: float, test_fraction: float, seed: int) -> dict[str, SamplesInMemory]:
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]  # (N, 1, 8, 8)
    rest, test = train_test_split(
        np.arange(len(pixels)), test_size=test_fraction, stratify=digits.target, random_state=seed
    )
    train, val = train_test_split(
        rest, test_size=val_fraction / (1 - test_fraction), stratify=digits.target[rest], random_state=seed
    )
    return {
        split: SamplesInMemory(torch.from_numpy(pixels[part]), torch.from_numpy(digits.target[part]).long())
        for split, part in {"train": train, "val": val, "test": test}.items()
    }
