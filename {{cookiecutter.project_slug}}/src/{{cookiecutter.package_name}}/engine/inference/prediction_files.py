"""Predictions as a file: CSV, one JSON object a line, or Parquet. Imports no torch."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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

    incoming = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        example = {"file": "", "index": 0, **told(np.zeros(max(1, len(labels)), np.float32))}
        with WRITERS[path.suffix.lower()](incoming, example) as write:
            yield lambda sample, row: write({"file": sample.file, "index": sample.index, **told(row)})
        incoming.replace(path)
    except OSError as error:
        raise UserError(f"output={path} cannot be written: {error.strerror or error}.") from error
    finally:
        if path.parent.is_dir():
            incoming.unlink(missing_ok=True)


@contextmanager
def _csv(path: Path, example: Told) -> Iterator[Callable[[Told], None]]:
    """Several labels stand in one cell, between semicolons."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_flat(example))
        yield lambda told: writer.writerow(
            ";".join(value) if isinstance(value, list) else value for value in _flat(told).values()
        )


@contextmanager
def _json_lines(path: Path, example: Told) -> Iterator[Callable[[Told], None]]:
    with path.open("w", encoding="utf-8", newline="") as file:
        yield lambda told: print(json.dumps(told, ensure_ascii=False), file=file)


@contextmanager
def _parquet(path: Path, example: Told) -> Iterator[Callable[[Told], None]]:
    import pyarrow as pa
    from pyarrow import parquet

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), list: pa.list_(pa.string())}
    schema = pa.schema([(name, types[type(value)]) for name, value in _flat(example).items()])
    rows: list[Told] = []
    with parquet.ParquetWriter(path, schema) as writer:

        def write(told: Told) -> None:
            rows.append(_flat(told))
            if len(rows) == AT_ONCE:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        yield write
        flush()


WRITERS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}


def _flat(told: Told) -> Told:
    """A column a label."""
    rest = {name: value for name, value in told.items() if name != "probabilities"}
    return rest | {f"probability_{label}": value for label, value in told.get("probabilities", {}).items()}
