"""Which pictures there are, and what they show: a folder for each label, or a CSV of paths and labels."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..inference.images import SUFFIXES
from ..inference.inputs import files_within
from .labels import BETWEEN, known_labels
from .splits import SPLIT_NAMES


class Picture(NamedTuple):
    """`split` is None where it is not given; `name` is the path as it is listed, below the root."""

    path: Path
    name: str
    label: str
    split: str | None


def list_pictures(root: Path, several: bool = False) -> list[Picture]:
    """Sorted by name, so that no file system decides about an order; raises `UserError` for what is no data set."""
    if not root.exists():
        raise UserError(f"data.root={root} does not exist: give a folder with a folder for each label, or a CSV.")
    if several and root.is_dir():
        raise UserError(
            f"data.root={root} is a folder: several labels of a picture stand in a CSV, as red{BETWEEN}round."
        )
    pictures = sorted(_of_folder(root) if root.is_dir() else _of_csv(root, several), key=lambda picture: picture.name)
    labels = known_labels((picture.label for picture in pictures), several)
    if len(labels) < 2:
        found = f"one label, '{labels[0]}'" if labels else "no picture"
        raise UserError(f"data.root={root} holds {found}: there must be two or more labels to tell apart.")
    return pictures


def _of_folder(root: Path) -> Iterator[Picture]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = {folder: SPLIT_NAMES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_NAMES}
    if "train" not in splits.values():
        yield from _of_labels(root, folders, None)
        return
    for folder in folders:
        if folder not in splits:
            raise UserError(f"{folder} lies beside the folders of the splits: move it into them, or away.")
        labels = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        yield from _of_labels(root, labels, splits[folder])


def _of_labels(root: Path, folders: list[Path], split: str | None) -> Iterator[Picture]:
    for folder in folders:
        files = files_within(folder, SUFFIXES)
        if not files:
            raise UserError(f"{folder} holds no picture ({' '.join(SUFFIXES)}): put some in, or remove it.")
        for path in files:
            yield Picture(path, path.relative_to(root).as_posix(), folder.name, split)


def _of_csv(file: Path, several: bool) -> Iterator[Picture]:
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
