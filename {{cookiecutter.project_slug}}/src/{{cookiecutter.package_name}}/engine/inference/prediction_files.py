"""Predictions as a file: CSV, one JSON object a line, or Parquet. Imports no torch."""

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

Row = Callable[[Sample, npt.NDArray[Any]], None]
Told = dict[str, Any]

AT_ONCE = 10_000  # rows of Parquet that are held until they are written


def check_output(path: Path) -> None:
    """Before anything is computed."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"output={path} has no format: give a name that ends in {' or '.join(WRITERS)}.")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"output={path} needs pyarrow: run 'pip install pyarrow', or give a name that ends in .csv.")
    if path.is_dir():
        raise UserError(f"output={path} is a folder: give the name of a file in it.")


@contextmanager
def written(path: Path, task: Task, labels: Sequence[str], probabilities: bool) -> Iterator[Row]:
    """Yields what writes a row, from a sample and the task's last output `(K,)`; `probabilities` adds one a label.

    The file appears at the end, whole; after an error or an interruption a file of that name is as it was before.
    """

    def told(row: npt.NDArray[Any]) -> Told:
        return task.describe(row, labels, every=probabilities)

    mode, writer = WRITERS[path.suffix.lower()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        example = {"file": "", "index": 0, **told(np.zeros(max(1, len(labels)), np.float32))}
        with atomic_write(path, mode) as file, writer(file, example) as write:
            yield lambda sample, row: write({"file": sample.file, "index": sample.index, **told(row)})
    except OSError as error:
        raise UserError(f"output={path} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _csv(file: IO[str], example: Told) -> Iterator[Callable[[Told], None]]:
    """Several labels stand in one cell, between semicolons."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_flat(example))
    yield lambda told: writer.writerow(
        ";".join(value) if isinstance(value, list) else value for value in _flat(told).values()
    )


@contextmanager
def _json_lines(file: IO[str], example: Told) -> Iterator[Callable[[Told], None]]:
    yield lambda told: print(json.dumps(told, ensure_ascii=False), file=file)


@contextmanager
def _parquet(file: IO[bytes], example: Told) -> Iterator[Callable[[Told], None]]:
    import pyarrow as pa
    from pyarrow import parquet

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), list: pa.list_(pa.string())}
    schema = pa.schema([(name, types[type(value)]) for name, value in _flat(example).items()])
    rows: list[Told] = []
    with parquet.ParquetWriter(file, schema) as writer:

        def write(told: Told) -> None:
            rows.append(_flat(told))
            if len(rows) == AT_ONCE:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        yield write
        flush()


WRITERS: dict[str, tuple[str, Callable[[IO[Any], Told], AbstractContextManager[Callable[[Told], None]]]]] = {
    ".csv": ("w", _csv),
    ".jsonl": ("w", _json_lines),
    ".parquet": ("wb", _parquet),
}


def _flat(told: Told) -> Told:
    """A column a label."""
    rest = {name: value for name, value in told.items() if name != "probabilities"}
    return rest | {f"probability_{label}": value for label, value in told.get("probabilities", {}).items()}
