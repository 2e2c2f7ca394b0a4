"""Predictions as a file: CSV, or one JSON object a line. Imports no torch."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from .refusal import Refusal
from .serving.inputs import Sample
from .serving.tasks import Task, figure

Row = Callable[[Sample, npt.NDArray[Any]], None]

FORMATS = (".csv", ".jsonl")


def check_output(path: Path) -> None:
    """Before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise Refusal(f"output={path} has no format: give a name that ends in {' or '.join(FORMATS)}.")
    if path.is_dir():
        raise Refusal(f"output={path} is a folder: give the name of a file in it.")


@contextmanager
def written(path: Path, task: Task, labels: Sequence[str], probabilities: bool) -> Iterator[Row]:
    """Yields what writes a row, from a sample and the task's last output `(K,)`; `probabilities` adds one a label.

    The file appears at the end, whole; after an error or an interruption a file of that name is as it was before.
    """
    incoming = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with incoming.open("w", encoding="utf-8", newline="") as file:
            yield (_csv if path.suffix.lower() == ".csv" else _json_lines)(file, task, labels, probabilities)
        incoming.replace(path)
    except OSError as error:
        raise Refusal(f"output={path} cannot be written: {error.strerror or error}.") from error
    finally:
        if path.parent.is_dir():
            incoming.unlink(missing_ok=True)


def _csv(file: TextIO, task: Task, labels: Sequence[str], probabilities: bool) -> Row:
    """Several labels stand in one cell, between semicolons."""
    writer: Any = csv.writer(file, lineterminator="\n")
    every = [f"probability_{label}" for label in labels] if probabilities else []
    writer.writerow(["file", "index", *task.told(np.zeros(max(1, len(labels))), labels, every=False), *every])

    def write(sample: Sample, row: npt.NDArray[Any]) -> None:
        told = task.told(row, labels, every=False).values()
        cells = (";".join(value) if isinstance(value, list) else value for value in told)
        writer.writerow([sample.file, sample.index, *cells, *(map(figure, row) if every else [])])

    return write


def _json_lines(file: TextIO, task: Task, labels: Sequence[str], probabilities: bool) -> Row:
    def write(sample: Sample, row: npt.NDArray[Any]) -> None:
        found = {"file": sample.file, "index": sample.index, **task.told(row, labels, every=probabilities)}
        file.write(json.dumps(found, ensure_ascii=False) + "\n")

    return write
