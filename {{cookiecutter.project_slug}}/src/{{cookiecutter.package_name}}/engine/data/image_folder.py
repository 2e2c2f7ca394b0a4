"""`data=image_folder`: picture files of one's own, decoded by worker processes while the network trains.

They lie in a folder for each label, or a CSV lists their paths and labels.
"""

import csv
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError, first_of
from ..inference.images import BIT_DEPTH, SUFFIXES, is_readable, read_picture
from ..inference.inputs import files_within, report_passed_over
from ..spec import DataSpec
from .augmentation import augmentation
from .data_module import SamplesDataModule
from .given_files import picture_root
from .labels import SEPARATOR, canonical_labels, count_labels, known_labels, label_numbers, rarest_labels
from .pixel_statistics import Scan, scan_pictures, statistics_of_sums
from .samples import Batch, Samples
from .splits import MIN_SAMPLES, SPLIT_NAMES, SPLITS

log = logging.getLogger(__name__)


class PicturesOnDisk(Samples):
    """Pictures `(B, *shape)`, uint8, decoded as they are fetched, by the function that the server reads them with."""

    def __init__(self, files: list[Path], labels: Tensor, shape: tuple[int, int, int], bit_depth: int) -> None:
        self.files = np.array([os.fsencode(path) for path in files])  # one array: worker processes share it
        self.labels = labels
        self.shape, self.bit_depth = shape, bit_depth

    def __getitems__(self, indices: list[int]) -> Batch:
        files = [Path(os.fsdecode(self.files[index])) for index in indices]
        pictures = [read_picture(file, self.shape, self.bit_depth).pixels for file in files]
        inputs = np.stack(pictures) if pictures else np.empty((0, *self.shape), dtype=np.uint8)
        return torch.from_numpy(inputs), self.labels[torch.tensor(indices, dtype=torch.long)]


class Picture(NamedTuple):
    """`name` is the path below the root, or as the CSV lists it; `split` is None if it is not given."""

    path: Path
    name: str
    label: str
    split: str | None


class ImageFolderDataModule(SamplesDataModule):
    """Pictures `(N, C, H, W)`, uint8 from 0 to 255, resized to `size` (height, width), and labels `(N,)`, int64.

    A split that is not given is made of each label separately, from `split_seed` and the names of the files: a picture
    stays in its split when `seed` changes. A file that cannot be read is named, and left out.
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
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        folder = picture_root(root)
        if len(size) != 2 or min(size) < 1:
            raise UserError(f"data.size={size} is no size of a picture: give height and width, as [64,64].")
        fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        super().__init__(batch_size, seed, num_workers, pin_memory, **fractions)
        self.augment = augmentation(augment)
        shape = (int(channels), size[0], size[1])
        several = task == "multilabel"
        pictures, scan = _readable(list_pictures(folder, several), several, shape, Path(cache_dir))
        words = [picture.label for picture in pictures]
        groups = rarest_labels(words, MIN_SAMPLES) if several else words
        rows = split_pictures(pictures, groups, val_fraction, test_fraction, split_seed)
        labels = tuple(known_labels((words[row] for row in rows["train"]), several))
        self.samples = {}
        for name, members in rows.items():
            truth, unknown = label_numbers([words[row] for row in members], labels, several)
            if unknown is not None:
                raise UserError(f"label '{words[members[unknown]]}' is in {name}, but no training picture shows it.")
            self.samples[name] = PicturesOnDisk([pictures[row].path for row in members], truth, shape, scan.bit_depth)
        mean, std = statistics_of_sums(scan.sums[rows["train"]], scan.squares[rows["train"]], size[0] * size[1])
        is_split_given = {picture.split for picture in pictures} == set(SPLITS)
        names = [pictures[row].name for row in rows["train"]]
        self.spec = DataSpec(
            name=folder.stem,
            task=task,
            input_shape=shape,
            input_dtype="uint8",
            input_range=(0.0, 255.0),
            labels=labels,
            mean=mean,
            std=std,
            bit_depth=0 if scan.bit_depth == BIT_DEPTH else scan.bit_depth,
            label_counts=count_labels(self.samples["train"].labels, len(labels)),
            description=f"{len(pictures):,} pictures of {len(labels)} labels, resized to {size[0]} x {size[1]} pixels.",
            fingerprint="" if is_split_given else hashlib.sha256("\n".join(names).encode()).hexdigest(),
        )


def _readable(
    pictures: list[Picture], several: bool, shape: tuple[int, int, int], cache_dir: Path
) -> tuple[list[Picture], Scan]:
    """Returns the pictures that can be read and what the scan found of them; says which were read in another way."""
    scan = scan_pictures([picture.path for picture in pictures], shape, cache_dir)
    broken, rows = np.flatnonzero(scan.reasons != ""), np.flatnonzero(scan.reasons == "")
    if len(broken):
        named = first_of([f"{pictures[row].name} ({scan.reasons[row]})" for row in broken], "; ")
        log.warning("left out    %d of %d pictures that cannot be read: %s", len(broken), len(pictures), named)
    for remark in sorted(set(scan.remarks.tolist()) - {""}):
        said = [pictures[row].name for row in np.flatnonzero(scan.remarks == remark)]
        log.warning("look at     %d pictures: %s: %s", len(said), remark, first_of(said))
    if scan.bit_depth < BIT_DEPTH:
        white = (1 << scan.bit_depth) - 1
        log.warning("pictures    of more than 8 bits use %d: %s is white", scan.bit_depth, f"{white:,}")
    readable = [pictures[row] for row in rows]
    there, left = (known_labels((picture.label for picture in part), several) for part in (pictures, readable))
    for label in sorted(set(there) - set(left)):
        raise UserError(f"no picture of the label '{label}' can be read: leave the label out, or mend its files.")
    return readable, scan._replace(sums=scan.sums[rows], squares=scan.squares[rows])


def split_pictures(
    pictures: list[Picture], groups: list[str], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Rows of each split; one that is not given is taken out of the training pictures, each group in proportion."""
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, picture in enumerate(pictures):
        rows[picture.split or "train"].append(row)
    missing = {name: part for name, part in (("test", test_fraction), ("val", val_fraction)) if not rows[name]}
    if not missing:
        return rows
    members_by_label: dict[str, list[int]] = {}
    for row in rows["train"]:
        members_by_label.setdefault(groups[row], []).append(row)
    for label, members in members_by_label.items():
        if len(members) <= len(missing):
            raise UserError(
                f"the label '{label}' has {len(members)} pictures, too few to split: give more, or leave it out."
            )
        members.sort(key=lambda row: hashlib.sha256(f"{seed}:{pictures[row].name}".encode()).digest())
        num_members = len(members)
        for name, part in missing.items():
            size = max(1, round(part * num_members))
            rows[name] += members[:size]
            del members[:size]
        if not members:
            raise UserError(f"the label '{label}' has no training picture left: make data.test_fraction smaller.")
    rows["train"] = [row for members in members_by_label.values() for row in members]
    return {name: sorted(members) for name, members in rows.items()}


def list_pictures(root: Path, several: bool = False) -> list[Picture]:
    """Sorted by name, so that no file system decides about the order; raises `UserError` for what is no data set."""
    if several and root.is_dir():
        raise UserError(
            f"data.root={root} is a folder: several labels of a picture stand in a CSV, as red{SEPARATOR}round."
        )
    found = list(_list_folder(root) if root.is_dir() else _list_csv(root, several))
    if not root.is_dir():
        labels = canonical_labels([picture.label for picture in found], several)
        found = [picture._replace(label=label) for picture, label in zip(found, labels, strict=True)]
    pictures = sorted(found, key=lambda picture: picture.name)
    labels = known_labels((picture.label for picture in pictures), several)
    if len(labels) < 2:
        found_labels = f"one label, '{labels[0]}'" if labels else "no picture"
        raise UserError(f"data.root={root} holds {found_labels}: there must be two or more labels to tell apart.")
    return pictures


def _list_folder(root: Path) -> Iterator[Picture]:
    passed_over: list[Path] = []
    folders = _visible_folders(root)
    splits = {folder: SPLIT_NAMES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_NAMES}
    if "train" not in splits.values():
        yield from _list_labels(root, folders, None, passed_over)
    else:
        for folder in folders:
            if folder not in splits:
                raise UserError(f"{folder} lies beside the folders of the splits: move it into them, or away.")
            yield from _list_labels(root, _visible_folders(folder), splits[folder], passed_over)
    report_passed_over(passed_over)


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_labels(root: Path, folders: list[Path], split: str | None, passed_over: list[Path]) -> Iterator[Picture]:
    for folder in folders:
        files, others = files_within(folder, SUFFIXES, is_readable)
        passed_over += others
        if not files:
            raise UserError(f"{folder} holds no picture ({' '.join(SUFFIXES)}): put some in, or remove it.")
        for path in files:
            yield Picture(path, path.relative_to(root).as_posix(), folder.name, split)


def _list_csv(file: Path, several: bool) -> Iterator[Picture]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"data.root={file} is no CSV in UTF-8 ({error.reason} at byte {error.start}).") from error
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:65536], delimiters=",;\t")
    except csv.Error:
        dialect = csv.excel
    rows = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect)
    names = {name.strip().lower(): name for name in rows.fieldnames or []}
    if not {"path", "label"} <= names.keys():
        columns = ", ".join(names) or "none"
        raise UserError(f"data.root={file} needs the columns path and label, and may have split; it has: {columns}.")
    for row in rows:
        values = {name: (row[column] or "").strip() for name, column in names.items()}
        split = values.get("split", "").lower()
        if not values["path"] or not (values["label"] or several):
            raise UserError(f"{file}, line {rows.line_num}: the path or the label is missing.")
        if ("split" in names) != (split in SPLIT_NAMES):
            raise UserError(f"{file}, line {rows.line_num}: split='{split}' is none of train, val and test.")
        yield Picture(file.parent / values["path"], values["path"], values["label"], SPLIT_NAMES.get(split))
