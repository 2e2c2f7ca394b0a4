"""`data=torchvision`: data sets that torchvision downloads and checks, with their own test splits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from filelock import FileLock
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

from ..errors import UserError
from ..spec import DataSpec
from ..warning_filters import WarningFilter, warnings_ignored
from .augmentation import Transformed
from .image_folder import enough_workers
from .labels import counts_of
from .loader import Batch
from .pixel_statistics import pixel_statistics
from .samples import Augmented, SamplesInMemory, check_batch, check_options, evaluation_loader, training_loader

KINDS: dict[str, Any] = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

EXTRACTION = WarningFilter(
    DeprecationWarning,
    r"Python 3\.14 will, by default, filter extracted tar archives",
    r"torchvision\.datasets\.utils",
    "what torchvision unpacks was held to its checksum before",
)


class DownloadedDataModule(pl.LightningDataModule):
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
        micro_batch_size: int | Literal["auto"] | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        check_options(batch_size, num_workers or 0, val_fraction=val_fraction)
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.transforms = [transform for transform in (augment or {}).values() if transform is not None]
        training, test = _read(name, Path(root).expanduser(), download)
        pixels, labels = _tensors(training)
        rows = _split(labels, val_fraction, split_seed)
        self.samples = {split: SamplesInMemory(pixels[of_split], labels[of_split]) for split, of_split in rows.items()}
        self.samples["test"] = SamplesInMemory(*_tensors(test))
        check_batch(batch_size, len(rows["train"]))
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
            label_counts=counts_of(self.samples["train"].labels, len(training.classes)),
            mean=mean,
            std=std,
            description=f"{TITLES[name]}, {size} and {len(training.classes)} labels, as torchvision has it.",
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        samples: SamplesInMemory | Augmented = self.samples["train"]
        if self.transforms:
            samples = Augmented(self.samples["train"], Transformed(self.transforms), self.seed)
        enough = enough_workers(self.trainer) if self.transforms else 0
        options = {**self._options, "num_workers": enough if self.num_workers is None else self.num_workers}
        return training_loader(samples, self.batch_size, self.seed, self.trainer, **options)

    def val_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["val"], self.batch_size, self.trainer, **self._options)

    def test_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["test"], self.batch_size, self.trainer, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        """A worker process would only copy what is in memory: those of the training change it."""
        return {"num_workers": 0, "pin_memory": self.pin_memory}


def _read(name: str, root: Path, download: bool) -> tuple[Any, Any]:
    """Torchvision's training and test split."""
    kind = KINDS[name]
    if not download:
        return _splits(name, root, download)
    try:
        root.mkdir(parents=True, exist_ok=True)
        locked = FileLock(root / f"{name}.lock").acquire()  # of several processes one downloads, the others wait
    except OSError as error:
        raise UserError(
            f"data.root={root} cannot be written to ({error.strerror}): give another folder, or data.download=false "
            f"where {kind.__name__} is in it."
        ) from error
    with locked:
        return _splits(name, root, download)


def _splits(name: str, root: Path, download: bool) -> tuple[Any, Any]:
    kind = KINDS[name]
    try:
        with warnings_ignored(EXTRACTION):
            return kind(root, train=True, download=download), kind(root, train=False)
    except Exception as error:  # of the network, of an archive, or of what is in a file: each has its own
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
    """The folder that torchvision keeps them in, and whether all are there."""
    if issubclass(kind, CIFAR10):
        folder, names = root / kind.base_folder, [name for name, _ in kind.train_list + kind.test_list]
    else:
        folder, names = root / kind.__name__ / "raw", [Path(archive).stem for archive, _ in kind.resources]
    return folder, all((folder / name).is_file() for name in names)


def _tensors(split: Any) -> tuple[Tensor, Tensor]:
    """Pixels `(N, C, H, W)` and labels `(N,)` of what holds grey `(N, H, W)` or coloured `(N, H, W, C)` pictures."""
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
