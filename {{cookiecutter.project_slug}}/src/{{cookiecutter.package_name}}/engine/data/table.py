"""`data=table`: a table of one's own as CSV or Parquet, or one that ships with scikit-learn."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UserError
from ..inference.input_schema import Column
from ..inference.tables import MOST, Table, encode
from ..spec import DataSpec
from .columns import choose, statistics
from .in_memory import InMemoryDataModule
from .labels import counts_of, known_labels, numbered, rarest
from .samples import SamplesInMemory
from .splits import LEAST, SPLITS, shuffled, stratified
from .table_rows import check_labels, given_split, known_column, read, with_targets

Task = Literal["classification", "multilabel", "regression"]


class TableDataModule(InMemoryDataModule):
    """Rows `(N, C)`, float32: numbers with NaN for a gap, categories by their codes. With them the target of `task`.

    That is labels `(N,)`, int64, or any number of labels `(N, K)`, 0 or 1, or numbers `(N,)` in their own units.

    What is known of the columns is known from the training split alone. With `trained`, the DataSpec of a checkpoint,
    it is what was known then; and a file that is not the one of the training is for the test, as a whole.
    """

    def __init__(
        self,
        path: str,
        target: str | None = None,
        task: Task = "classification",
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
        given = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        super().__init__(batch_size, micro_batch_size, seed, num_workers, pin_memory, **given)
        table, target, fingerprint = read(path, target)
        table = with_targets(table, target, task)
        fractions = val_fraction, test_fraction, split_seed
        if split is not None:  # rows stay where they are said to be, whatever else the file holds
            needed = SPLITS if trained is None else ("test",)
            rows, fingerprint = given_split(table, known_column(table, split, "split", path), needed), ""
        elif trained is not None and trained.fingerprint != fingerprint:
            rows = {name: np.arange(len(table.places) if name == "test" else 0) for name in SPLITS}
        elif task == "regression":
            rows = shuffled(len(table.places), *fractions)
        else:
            words = check_labels(table, target, task)
            rows = stratified(rarest(words, LEAST) if task == "multilabel" else words, *fractions)
        if trained is None:
            but = [target, *([] if split is None else [split]), *(drop or [])]
            columns = choose(table, but, categorical or [], rows["train"])
        else:
            columns = [Column.from_dict(column) for column in trained.columns]
        inputs = _encoded(table, columns, path)
        if trained is None:
            trained = _described(table, target, task, columns, rows["train"], inputs[rows["train"]])
        self.spec = replace(trained, name=Path(path).stem, fingerprint=fingerprint)
        truth = _truth(table, target, self.spec)
        self.samples = {
            name: SamplesInMemory(torch.from_numpy(inputs[of_split]), truth[torch.from_numpy(of_split)])
            for name, of_split in rows.items()
        }


def _described(
    table: Table,
    target: str,
    task: Task,
    columns: list[Column],
    training: npt.NDArray[np.int64],
    inputs: npt.NDArray[np.float32],
) -> DataSpec:
    """From the rows `training` alone, of which `inputs` are the values."""
    mean, std = statistics(inputs, columns)
    spec = DataSpec(
        name="",
        task=task,
        input_shape=(len(columns),),
        input_dtype="float32",
        input_range=(-MOST, MOST),
        labels=(),
        mean=mean,
        std=std,
        columns=tuple(column.to_dict() for column in columns),
        target=target,
    )
    described = f"{len(table.places):,} rows of {len(columns)} columns, and in '{target}' "
    if task == "regression":
        numbers = table.numbers(target)[0][training]
        spread = float(numbers.std())
        if not spread:
            raise UserError(f"data.target={target} is the same in all training rows: there is nothing to predict.")
        mean_of_target = float(numbers.mean())
        return replace(spec, target_mean=mean_of_target, target_std=spread, description=f"{described}a number.")
    several = task == "multilabel"
    words = table.words(target)
    words = [words[row] for row in training]
    labels = tuple(known_labels(words, several))
    counts = counts_of(numbered(words, labels, several)[0], len(labels))
    kind = "any" if several else "one"
    return replace(spec, labels=labels, label_counts=counts, description=f"{described}{kind} of {len(labels)} labels.")


def _encoded(table: Table, columns: list[Column], path: str) -> npt.NDArray[np.float32]:
    try:
        values, reasons = encode(table, columns)
    except ValueError as error:
        raise UserError(f"data.path={path} cannot be used: {error}.") from error
    if reasons:
        raise UserError(f"data.path={path} cannot be used, {next(iter(reasons.values()))}: mend it, or empty it.")
    return values


def _truth(table: Table, target: str, spec: DataSpec) -> Tensor:
    if spec.task == "regression":
        return torch.from_numpy(table.numbers(target)[0].astype(np.float32))
    words = table.words(target)
    truth, unknown = numbered(words, spec.labels, spec.task == "multilabel")
    if unknown is not None:
        place, word = table.places[unknown], words[unknown]
        raise UserError(f"{place} of the table: {target}='{word}' is no label of the training split.")
    return truth
