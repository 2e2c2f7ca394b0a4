"""Data, networks and options for tests that do not depend on the kind of data: scikit-learn's digits, in memory."""

from dataclasses import fields
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from {{ cookiecutter.package_name }}.engine.config import CONFIG_DIRS
from {{ cookiecutter.package_name }}.engine.data.samples import Augment, Augmented, Batch, SamplesInMemory, as_fetched
from {{ cookiecutter.package_name }}.engine.distributed.strategies import OneDeviceStrategy
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training.callbacks.optimization import Optimization
from {{ cookiecutter.package_name }}.engine.training.options import TrainOptions

NUM_TRAIN, NUM_VAL = 1257, 180


class Digits(pl.LightningDataModule):
    """Pictures `(N, 1, 8, 8)`, uint8, and labels `(N,)`: 1,257 for training, 360 for the test."""

    def __init__(
        self, batch_size: int = 64, seed: int = 42, augment: Augment | None = None, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.batch_size, self.seed, self.augment, self.num_workers = batch_size, seed, augment, num_workers
        digits = load_digits()
        inputs = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)[:, np.newaxis])
        labels, end = torch.from_numpy(digits.target).long(), NUM_TRAIN + NUM_VAL
        parts = {"train": slice(NUM_TRAIN), "val": slice(NUM_TRAIN, end), "test": slice(end, None)}
        self.samples = {name: SamplesInMemory(inputs[part], labels[part]) for name, part in parts.items()}
        self.spec = DataSpec(
            name="digits",
            task="classification",
            input_shape=(1, 8, 8),
            input_dtype="uint8",
            input_range=(0.0, 255.0),
            labels=tuple("0123456789"),
            mean=(78.0,),
            std=(96.0,),
            label_counts=tuple(self.samples["train"].labels.bincount().tolist()),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        samples: SamplesInMemory | Augmented = self.samples["train"]
        if self.augment is not None:
            samples = Augmented(self.samples["train"], self.augment)
        generator = torch.Generator().manual_seed(self.seed)
        options = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0, "drop_last": True}
        return DataLoader(samples, self.batch_size, shuffle=True, generator=generator, collate_fn=as_fetched, **options)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.samples["val"], self.batch_size, collate_fn=as_fetched)

    def test_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.samples["test"], self.batch_size, collate_fn=as_fetched)


def one_device() -> OneDeviceStrategy:
    """Of the engine: Lightning's own deals no loaders."""
    return OneDeviceStrategy(torch.device("cpu"))


def train_options(**given: Any) -> TrainOptions:
    """The options of `train.yaml` that are given, and the defaults of the others."""
    defaults: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIRS[0] / "train.yaml"))
    return TrainOptions(
        **{option.name: given.get(option.name, defaults[option.name]) for option in fields(TrainOptions)}
    )


def optimization(pretrained_names: frozenset[str] = frozenset(), lr_factor: float = 1.0, **given: Any) -> Optimization:
    """The callback, with the options of `train.yaml` that are given."""
    return Optimization(train_options(**given), pretrained_names, lr_factor)


def rolled(pictures: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Rolls each picture by 0 to 4 pixels down and right, at random."""
    moves = [torch.randint(5, (2,), generator=generator).tolist() for generator in generators]
    return torch.stack([picture.roll(move, (1, 2)) for picture, move in zip(pictures, moves, strict=True)])


def linear(spec: DataSpec, width: int = 8, dropout: float = 0.0) -> nn.Sequential:
    """`(B, 1, 8, 8)` to logits `(B, K)`."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, spec.num_outputs)
    )


def convolutions(spec: DataSpec, dropout: float = 0.0) -> nn.Sequential:
    """`(B, 1, 8, 8)` to logits `(B, K)`, by two convolutions."""
    layers: list[nn.Module] = []
    for channels in (1, 8):
        layers += [nn.Conv2d(channels, 8, kernel_size=3, padding=1, bias=False), nn.GroupNorm(4, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, spec.num_outputs))
