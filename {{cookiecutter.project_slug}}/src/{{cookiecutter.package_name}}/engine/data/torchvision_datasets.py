"""`data=torchvision`: data sets that torchvision downloads and checks, with their own test splits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

from ..errors import UserError
from ..spec import DataSpec
from ..warning_filters import WarningFilter, warnings_ignored
from .augmentation import augmentation
from .data_module import InMemoryDataModule
from .labels import count_labels
from .pixel_statistics import pixel_statistics
from .samples import SamplesInMemory

KINDS: dict[str, Any] = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

# torchvision verified the checksum of the archive before
EXTRACTION = WarningFilter(DeprecationWarning, r"Python 3\.14 will, by default", r"torchvision\.datasets\.utils")


class TorchvisionDataModule(InMemoryDataModule):
    """Pictures `(N, C, H, W)`, uint8 from 0 to 255, in memory, and labels `(N,)`, int64.

    The test split is that of the data set. Validation is taken out of its training split by `split_seed` alone, each
    label in proportion.
    """

    def __init__(
        self,
        name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100"],
        root: str,
        download: bool = True,
        augment: Mapping[str, nn.Module | None] | None = None,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, seed, num_workers, pin_memory, val_fraction=val_fraction)
        self.augment = augmentation(augment)
        training, test = _read(name, Path(root).expanduser(), download)
        pixels, labels = _tensors(training)
        rows = _split(labels, val_fraction, split_seed)
        self.samples = {split: SamplesInMemory(pixels[part], labels[part]) for split, part in rows.items()}
        self.samples["test"] = SamplesInMemory(*_tensors(test))
        mean, std = pixel_statistics(self.samples["train"].inputs)
        _, channels, height, width = pixels.shape
        size = f"{len(pixels) + len(self.samples['test']):,} pictures of {height} x {width} pixels"
        self.spec = DataSpec(
            name=name,
            task="classification",
            input_shape=(channels, height, width),
            input_dtype="uint8",
            input_range=(0.0, 255.0),
            labels=tuple(training.classes),
            label_counts=count_labels(self.samples["train"].labels, len(training.classes)),
            mean=mean,
            std=std,
            description=f"{TITLES[name]}, {size} and {len(training.classes)} labels, as torchvision has it.",
        )


def _read(name: str, root: Path, download: bool) -> tuple[Any, Any]:
    """Torchvision's training and test split."""
    if not download:
        return _load(name, root, download)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{name}.lock").acquire()  # one of several processes downloads, the others wait
    except OSError as error:
        raise UserError(
            f"data.root={root} cannot be written to ({error.strerror}): give another folder, or data.download=false "
            f"where {KINDS[name].__name__} is in it."
        ) from error
    with lock:
        return _load(name, root, download)


def _load(name: str, root: Path, download: bool) -> tuple[Any, Any]:
    kind = KINDS[name]
    try:
        with warnings_ignored(EXTRACTION):
            return kind(root, train=True, download=download), kind(root, train=False)
    except Exception as error:  # the network, an archive and the contents of a file each raise their own
        folder, is_there = _files(kind, root)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        if is_there:
            sentence = f"{folder} holds damaged files ({reason}): remove it, to have them downloaded again."
        elif download:
            sentence = f"data.name={name} cannot be downloaded ({reason}): try again, or put its files into {folder}."
        else:
            sentence = f"{folder} does not hold all files of data.name={name}: give data.download=true."
        raise UserError(sentence) from error


def _files(kind: Any, root: Path) -> tuple[Path, bool]:
    """The folder in which torchvision keeps the files, and whether all are there."""
    if issubclass(kind, CIFAR10):
        folder, names = root / kind.base_folder, [name for name, _ in kind.train_list + kind.test_list]
    else:
        folder, names = root / kind.__name__ / "raw", [Path(archive).stem for archive, _ in kind.resources]
    return folder, all((folder / name).is_file() for name in names)


def _tensors(split: Any) -> tuple[Tensor, Tensor]:
    """Pixels `(N, C, H, W)` and labels `(N,)` of grey pictures `(N, H, W)` or coloured ones `(N, H, W, C)`."""
    pixels = torch.as_tensor(split.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.movedim(-1, 1)
    return pixels.contiguous(), torch.as_tensor(split.targets, dtype=torch.long)


def _split(labels: Tensor, val_fraction: float, seed: int) -> dict[str, Tensor]:
    """Rows of the training split, `(N,)` each; stratified."""
    rows = np.arange(len(labels))
    try:
        train, val = train_test_split(rows, test_size=val_fraction, stratify=labels.numpy(), random_state=seed)
    except ValueError as error:
        raise UserError(f"data.val_fraction={val_fraction} gives not one picture of each label: {error}") from error
    return {"train": torch.from_numpy(train), "val": torch.from_numpy(val)}
