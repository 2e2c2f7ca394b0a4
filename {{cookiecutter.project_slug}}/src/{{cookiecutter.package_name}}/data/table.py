"""`data=table`: a table of one's own as CSV or Parquet, or one that ships with scikit-learn."""

import hashlib
import logging
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from sklearn import datasets
from torch import Tensor
from torch.utils.data import DataLoader

from ..refusal import Refusal, nearest
from ..serving.accepted import Column
from ..serving.tables import MOST, Table, encode, read_table
from .columns import choose, natural_order, statistics
from .samples import Batch, SamplesInMemory, check_batch, check_options, evaluation_loader, training_loader
from .spec import DataSpec
from .splits import SPLIT_NAMES, SPLITS, stratified

log = logging.getLogger(__name__)

# Tables that ship with scikit-learn, by the name that stands in the place of a path.
BUNDLED = {"breast_cancer": datasets.load_breast_cancer, "iris": datasets.load_iris, "wine": datasets.load_wine}
TARGET = "target"  # the column of those that holds the label
NUM_NAMED = 5  # of the rows that are left out

Rows = dict[str, npt.NDArray[np.int64]]


class TableDataModule(pl.LightningDataModule):
    """Rows `(N, C)`, float32, and labels `(N,)`, int64: numbers with NaN for a gap, categories by their codes.

    What is known of the columns is known from the training split alone. With `trained`, the DataSpec of a checkpoint,
    it is what was known then; and a file that is not the one of the training is for the test, as a whole.
    """

    def __init__(
        self,
        path: str,
        target: str | None = None,
        drop: list[str] | None = None,
        categorical: list[str] | None = None,
        split: str | None = None,
        batch_size: int = 64,
        micro_batch_size: int | Literal["auto"] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        trained: DataSpec | None = None,
    ) -> None:
        super().__init__()
        check_options(batch_size, num_workers, val_fraction=val_fraction, test_fraction=test_fraction)
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.loader_options = {"num_workers": num_workers, "pin_memory": pin_memory}
        table, fingerprint = _read(path)
        target = _known(table, target or (TARGET if path in BUNDLED else None), "target", path)
        table = _with_labels(table, target)
        if split is not None:  # another file keeps its rows where they are, and so does this one when rows are added
            needed = SPLITS if trained is None else ("test",)
            rows, fingerprint = _given(table, _known(table, split, "split", path), needed), ""
        elif trained is not None and trained.fingerprint != fingerprint:
            rows = {name: np.arange(len(table.places) if name == "test" else 0) for name in SPLITS}
        else:
            rows = stratified(_labels(table, target), val_fraction, test_fraction, split_seed)
        if trained is None:
            check_batch(batch_size, len(rows["train"]))
            but = [target, *([] if split is None else [split]), *(drop or [])]
            trained = _described(table, target, choose(table, but, categorical or [], rows["train"]), rows["train"])
        self.spec = DataSpec.from_dict({**trained.to_dict(), "name": Path(path).stem, "fingerprint": fingerprint})
        inputs, truth = _encoded(table, self.spec), _numbered(table, target, self.spec)
        self.samples = {
            name: SamplesInMemory(torch.from_numpy(inputs[of_split]), truth[torch.from_numpy(of_split)])
            for name, of_split in rows.items()
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        return training_loader(self.samples["train"], self.batch_size, self.seed, self.trainer, **self.loader_options)

    def val_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["val"], self.batch_size, self.trainer, **self.loader_options)

    def test_dataloader(self) -> DataLoader[Batch]:
        return evaluation_loader(self.samples["test"], self.batch_size, self.trainer, **self.loader_options)


def _read(path: str) -> tuple[Table, str]:
    """With a digest of the file's contents."""
    file = Path(path).expanduser()
    if not file.exists() and path in BUNDLED:
        bundled = BUNDLED[path](as_frame=False)
        names = [*map(str, bundled.feature_names), TARGET]
        labels = np.array([str(bundled.target_names[number]) for number in bundled.target], dtype=object)
        cells = dict(zip(names, [*bundled.data.T, labels], strict=True))
        return Table(cells, [f"row {number}" for number in range(1, len(labels) + 1)]), ""
    if not file.is_file():
        known = " or ".join((", ".join(list(BUNDLED)[:-1]), list(BUNDLED)[-1]))
        raise Refusal(f"data.path={path} does not exist: give a CSV or Parquet file, or {known}.")
    try:
        table = read_table(file)
    except (OSError, ValueError) as error:
        raise Refusal(f"data.path={path} cannot be used: {error}.") from error
    with file.open("rb") as contents:
        return table, hashlib.file_digest(contents, "sha256").hexdigest()


def _known(table: Table, name: str | None, option: str, path: str) -> str:
    if name is None:
        raise Refusal(f"data.{option}= is needed: {path} has the columns {', '.join(table.cells)}.")
    if name not in table.cells:
        raise Refusal(f"data.{option}={name} is no column of {path}; {nearest(name, table.cells)}")
    return name


def _with_labels(table: Table, target: str) -> Table:
    """Without the rows that have none."""
    words = table.words(target)
    missing = [row for row, word in enumerate(words) if not word]
    if missing:
        named = ", ".join(table.places[row] for row in missing[:NUM_NAMED])
        more = ", ..." if len(missing) > NUM_NAMED else ""
        log.warning("left out    %d of %d rows without '%s': %s%s", len(missing), len(words), target, named, more)
        table = table.without(missing)
    return table


def _labels(table: Table, target: str) -> list[str]:
    """Refuses a target that is no label: one for all rows, or another one for almost each."""
    words = table.words(target)
    labels = natural_order(words)
    if len(labels) < 2:
        found = f"one label, '{labels[0]}'" if labels else "no row"
        raise Refusal(f"data.target={target} holds {found}: there must be two or more labels to tell apart.")
    if len(labels) > len(words) / 2:
        raise Refusal(f"data.target={target} has {len(labels)} labels in {len(words)} rows: name a column of labels.")
    return words


def _given(table: Table, split: str, needed: tuple[str, ...]) -> Rows:
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, word in enumerate(table.words(split)):
        if word.lower() not in SPLIT_NAMES:
            raise Refusal(f"{table.places[row]} of the table: {split}='{word}' is none of {', '.join(SPLITS)}.")
        rows[SPLIT_NAMES[word.lower()]].append(row)
    for name in needed:
        if not rows[name]:
            raise Refusal(f"data.split={split} names no row for {name}: each of {', '.join(needed)} needs some.")
    return {name: np.array(of_split, dtype=np.int64) for name, of_split in rows.items()}


def _described(table: Table, target: str, columns: list[Column], training: npt.NDArray[np.int64]) -> DataSpec:
    words = table.words(target)
    labels = natural_order(words[row] for row in training)
    values, _ = encode(table, columns)
    mean, std = statistics(values[training], columns)
    return DataSpec(
        name="",
        task="classification",
        input_shape=(len(columns),),
        input_dtype="float32",
        input_range=(-MOST, MOST),
        labels=tuple(labels),
        mean=mean,
        std=std,
        description=f"{len(words):,} rows of {len(columns)} columns, and in '{target}' one of {len(labels)} labels.",
        columns=tuple(column.to_dict() for column in columns),
    )


def _encoded(table: Table, spec: DataSpec) -> npt.NDArray[np.float32]:
    try:
        values, reasons = encode(table, [Column.of(column) for column in spec.columns])
    except ValueError as error:
        raise Refusal(f"data.path={spec.name} cannot be used: {error}.") from error
    if reasons:
        raise Refusal(f"data.path={spec.name} cannot be used, {next(iter(reasons.values()))}: mend it, or empty it.")
    return values


def _numbered(table: Table, target: str, spec: DataSpec) -> Tensor:
    numbers = {label: number for number, label in enumerate(spec.labels)}
    words = table.words(target)
    for place, word in zip(table.places, words, strict=True):
        if word not in numbers:
            raise Refusal(f"{place} of the table: {target}='{word}' is no label of the training split.")
    return torch.tensor([numbers[word] for word in words])
