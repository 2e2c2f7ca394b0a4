"""Writes predictions to a file: CSV, one JSON object a line, or Parquet."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..atomic import atomic_write
from ..errors import UserError
from .inputs import Sample
from .tasks import Task

WritePrediction = Callable[[Sample, npt.NDArray[Any]], None]
Row = dict[str, Any]
WriteRow = Callable[[Row], None]

PARQUET_ROWS = 10_000  # held in memory until they are written


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, before anything is computed."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"output={path} has no format: give a name that ends in {' or '.join(WRITERS)}.")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"output={path} needs pyarrow: run 'pip install pyarrow', or give a name that ends in .csv.")
    if path.is_dir():
        raise UserError(f"output={path} is a folder: give the name of a file in it.")


@contextmanager
def prediction_writer(path: Path, task: Task, labels: Sequence[str], probabilities: bool) -> Iterator[WritePrediction]:
    """Yields a function that writes a sample and the task's last output `(K,)`, with `probabilities` for all labels.

    The file appears at the end; after an error or an interruption an earlier file of that name is as it was.
    """

    def row(sample: Sample, last: npt.NDArray[Any]) -> Row:
        return {"file": sample.file, "index": sample.index, **task.describe(last, labels, every=probabilities)}

    mode, writer = WRITERS[path.suffix.lower()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        example = row(Sample("", 0, np.empty(0)), np.zeros(max(1, len(labels)), np.float32))
        with atomic_write(path, mode) as file, writer(file, example) as write:
            yield lambda sample, last: write(row(sample, last))
    except OSError as error:
        raise UserError(f"output={path} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _csv(file: IO[str], example: Row) -> Iterator[WriteRow]:
    """Writes several labels of a sample into one cell, between semicolons."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_flat(example))
    yield lambda row: writer.writerow(
        ";".join(value) if isinstance(value, list) else value for value in _flat(row).values()
    )


@contextmanager
def _json_lines(file: IO[str], example: Row) -> Iterator[WriteRow]:
    yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)


@contextmanager
def _parquet(file: IO[bytes], example: Row) -> Iterator[WriteRow]:
    import pyarrow as pa  # here: only Parquet needs it, and a server's environment does not have it
    from pyarrow import parquet

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), list: pa.list_(pa.string())}
    schema = pa.schema([(name, types[type(value)]) for name, value in _flat(example).items()])
    rows: list[Row] = []
    with parquet.ParquetWriter(file, schema) as writer:

        def write(row: Row) -> None:
            rows.append(_flat(row))
            if len(rows) == PARQUET_ROWS:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        yield write
        flush()


WRITERS: dict[str, tuple[str, Callable[[IO[Any], Row], AbstractContextManager[WriteRow]]]] = {
    ".csv": ("w", _csv),
    ".jsonl": ("w", _json_lines),
    ".parquet": ("wb", _parquet),
}


def _flat(row: Row) -> Row:
    """Gives the probability of each label a column."""
    rest = {name: value for name, value in row.items() if name != "probabilities"}
    return rest | {f"probability_{label}": value for label, value in row.get("probabilities", {}).items()}
