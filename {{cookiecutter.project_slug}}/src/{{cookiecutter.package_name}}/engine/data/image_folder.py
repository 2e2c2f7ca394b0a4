"""`data=image_folder`: picture files of one's own, decoded by worker processes while the network trains."""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import UserError
from ..inference.images import read_picture
from ..spec import DataSpec
from .augmentation import Transformed
from .image_listing import Picture, list_pictures
from .image_scan import look_at, num_cores
from .labels import counts_of, known_labels, numbered, rarest
from .loader import Batch
from .pixel_statistics import Sums, statistics_of
from .samples import Augmented, Samples, check_batch, check_options, evaluation_loader, training_loader
from .splits import LEAST

log = logging.getLogger(__name__)

NUM_NAMED = 5  # of the files that cannot be read
MOST_WORKERS = 8


class PicturesOnDisk(Samples):
    """Decoded as they are fetched: `(B, *shape)` uint8, and labels `(B,)`; read as the server reads them."""

    def __init__(self, files: list[Path], labels: Tensor, shape: tuple[int, int, int]) -> None:
        self.files = np.array([os.fsencode(path) for path in files])  # one array: worker processes share it
        self.labels = labels
        self.shape = shape

    def __getitems__(self, indices: list[int]) -> Batch:
        pictures = [read_picture(Path(os.fsdecode(self.files[index])), self.shape) for index in indices]
        inputs = np.stack(pictures) if pictures else np.empty((0, *self.shape), dtype=np.uint8)
        return torch.from_numpy(inputs), self.labels[torch.tensor(indices, dtype=torch.long)]


class ImageFolderDataModule(pl.LightningDataModule):
    """Pictures `(N, C, H, W)`, uint8 from 0 to 255, resized to `size` (height, width), and labels `(N,)`, int64.

    Where the split is not given, it is made of each label on its own, by `split_seed` and the names of the files: a
    picture stays in its split when `seed` changes. A file that cannot be read is named, and left out.
    """

    def __init__(
        self,
        root: str | None,
        cache_dir: str,
        size: list[int],
        channels: Literal[1, 3] = 3,
        task: Literal["classification", "multilabel"] = "classification",
        augment: Mapping[str, nn.Module | None] | None = None,
        batch_size: int = 64,
        micro_batch_size: int | Literal["auto"] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        if root is None:
            raise UserError(
                "data.root= is needed: give a folder with a folder for each label, or a CSV of path, label."
            )
        if len(size) != 2 or min(size) < 1:
            raise UserError(f"data.size={size} is no size of a picture: give height and width, as [64,64].")
        check_options(batch_size, num_workers or 0, val_fraction=val_fraction, test_fraction=test_fraction)
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.transforms = [transform for transform in (augment or {}).values() if transform is not None]
        shape = (int(channels), size[0], size[1])
        several = task == "multilabel"
        pictures, sums, squares = _readable(list_pictures(Path(root), several), several, shape, Path(cache_dir))
        words = [picture.label for picture in pictures]
        groups = rarest(words, LEAST) if several else words
        rows = split(pictures, groups, val_fraction, test_fraction, split_seed)
        labels = tuple(known_labels((words[row] for row in rows["train"]), several))
        self.samples = {}
        for name, of_split in rows.items():
            truth, unknown = numbered([words[row] for row in of_split], labels, several)
            if unknown is not None:
                raise UserError(f"label '{words[of_split[unknown]]}' is in {name}, but no training picture shows it.")
            self.samples[name] = PicturesOnDisk([pictures[row].path for row in of_split], truth, shape)
        check_batch(batch_size, len(rows["train"]))
        mean, std = statistics_of(sums[rows["train"]], squares[rows["train"]], size[0] * size[1])
        made = any(picture.split is None for picture in pictures) or len({picture.split for picture in pictures}) < 3
        self.spec = DataSpec(
            name=Path(root).stem,
            task=task,
            input_shape=shape,
            input_dtype="uint8",
            input_range=(0.0, 255.0),
            labels=labels,
            mean=mean,
            std=std,
            label_counts=counts_of(self.samples["train"].labels, len(labels)),
            description=f"{len(pictures):,} pictures of {len(labels)} labels, resized to {size[0]} x {size[1]} pixels.",
            fingerprint=_fingerprint([pictures[row].name for row in rows["train"]]) if made else "",
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        samples: PicturesOnDisk | Augmented = self.samples["train"]
        if self.transforms:
            samples = Augmented(self.samples["train"], Transformed(self.transforms), self.seed)
        return training_loader(samples, self.batch_size, self.seed, self.trainer, **self._loader_options())

    def val_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["val"], self.batch_size, self.trainer, **self._loader_options())

    def test_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["test"], self.batch_size, self.trainer, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        num_workers = enough_workers(self.trainer) if self.num_workers is None else self.num_workers
        return {"num_workers": num_workers, "pin_memory": self.pin_memory}


def enough_workers(trainer: pl.Trainer | None) -> int:
    """A machine's cores are shared by the processes that train on it."""
    processes = 1 if trainer is None else trainer.world_size // getattr(trainer, "num_nodes", 1)
    return max(1, min(MOST_WORKERS, num_cores() // processes))


def _readable(
    pictures: list[Picture], several: bool, shape: tuple[int, int, int], cache_dir: Path
) -> tuple[list[Picture], Sums, Sums]:
    found = look_at([picture.path for picture in pictures], shape, cache_dir)
    broken = np.flatnonzero(found.reasons != "")
    if len(broken):
        named = "; ".join(f"{pictures[row].name} ({found.reasons[row]})" for row in broken[:NUM_NAMED])
        more = "" if len(broken) <= NUM_NAMED else "; ..."
        log.warning("left out    %d of %d pictures that cannot be read: %s%s", len(broken), len(pictures), named, more)
    kept = np.flatnonzero(found.reasons == "")
    readable = [pictures[row] for row in kept]
    there, left = (known_labels((picture.label for picture in part), several) for part in (pictures, readable))
    for label in sorted(set(there) - set(left)):
        raise UserError(f"no picture of the label '{label}' can be read: leave the label out, or mend its files.")
    return readable, found.sums[kept], found.squares[kept]


def split(
    pictures: list[Picture], groups: list[str], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Rows of each split; one that is not given is taken out of the training pictures, each label in proportion."""
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for row, picture in enumerate(pictures):
        rows[picture.split or "train"].append(row)
    made = {name: part for name, part in (("test", test_fraction), ("val", val_fraction)) if not rows[name]}
    if not made:
        return rows
    of_label: dict[str, list[int]] = {}
    for row in rows["train"]:
        of_label.setdefault(groups[row], []).append(row)
    for label, members in of_label.items():
        if len(members) <= len(made):
            raise UserError(
                f"the label '{label}' has {len(members)} pictures, too few to split: give more, or leave it out."
            )
        members.sort(key=lambda row: hashlib.sha256(f"{seed}:{pictures[row].name}".encode()).digest())
        num_members = len(members)
        for name, part in made.items():
            taken = max(1, round(part * num_members))
            rows[name] += members[:taken]
            del members[:taken]
        if not members:
            raise UserError(f"the label '{label}' has no training picture left: make data.test_fraction smaller.")
    rows["train"] = [row for members in of_label.values() for row in members]
    return {name: sorted(of_split) for name, of_split in rows.items()}


def _fingerprint(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
