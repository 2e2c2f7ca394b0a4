"""Predictions as a file: CSV, or one JSON object a line. Imports no torch."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy.typing as npt

from .refusal import Refusal
from .serving.inputs import Sample

Row = Callable[[Sample, npt.NDArray[Any]], None]

FORMATS = (".csv", ".jsonl")


def check_output(path: Path) -> None:
    """Before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise Refusal(f"output={path} has no format: give a name that ends in {' or '.join(FORMATS)}.")
    if path.is_dir():
        raise Refusal(f"output={path} is a folder: give the name of a file in it.")


@contextmanager
def written(path: Path, labels: Sequence[str], probabilities: bool) -> Iterator[Row]:
    """Yields what writes a row, from a sample and its probabilities `(K,)`; `probabilities` adds one for every label.

    The file appears at the end, whole; after an error or an interruption a file of that name is as it was before.
    """
    incoming = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with incoming.open("w", encoding="utf-8", newline="") as file:
            yield (_csv if path.suffix.lower() == ".csv" else _json_lines)(file, labels, probabilities)
        incoming.replace(path)
    except OSError as error:
        raise Refusal(f"output={path} cannot be written: {error.strerror or error}.") from error
    finally:
        if path.parent.is_dir():
            incoming.unlink(missing_ok=True)


def _csv(file: TextIO, labels: Sequence[str], probabilities: bool) -> Row:
    writer = csv.writer(file, lineterminator="\n")
    every = [f"probability_{label}" for label in labels] if probabilities else []
    writer.writerow(["file", "index", "label", "probability", *every])

    def write(sample: Sample, row: npt.NDArray[Any]) -> None:
        best = int(row.argmax())
        figures = map(_figure, row) if probabilities else []
        writer.writerow([sample.file, sample.index, labels[best], _figure(row[best]), *figures])

    return write


def _json_lines(file: TextIO, labels: Sequence[str], probabilities: bool) -> Row:
    def write(sample: Sample, row: npt.NDArray[Any]) -> None:
        best = int(row.argmax())
        found: dict[str, Any] = {"file": sample.file, "index": sample.index}
        found |= {"label": labels[best], "probability": _figure(row[best])}
        if probabilities:
            found["probabilities"] = dict(zip(labels, map(_figure, row), strict=True))
        file.write(json.dumps(found, ensure_ascii=False) + "\n")

    return write


def _figure(probability: Any) -> float:
    """As many digits as float32 has."""
    return float(f"{probability:.7g}")
