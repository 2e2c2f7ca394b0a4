"""Writes predictions to a file: CSV, one JSON object a line, Parquet, or all outputs as arrays in an `.npz`."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..atomic import atomic_write
from ..errors import UserError
from .answers import describe, is_mask, mask_as_png
from .inputs import Sample
from .signature import ARRAY_SUFFIXES, Array, Arrays, Signature, kind_of

WritePrediction = Callable[[Sample, Arrays], None]
Row = dict[str, Any]
WriteRow = Callable[[Row], None]

PARQUET_ROWS = 10_000  # held in memory until they are written


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, before anything is computed."""
    suffixes = (*WRITERS, ".npz")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"output={path} has no format: give a name that ends in {' or '.join(suffixes)}.")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"output={path} needs pyarrow: run 'pip install pyarrow', or give a name that ends in .csv.")
    if path.is_dir():
        raise UserError(f"output={path} is a folder: give the name of a file in it.")


def places_of(files: Sequence[Path], signature: Signature) -> tuple[str, ...]:
    """Returns the columns that tell the samples of these files apart: a picture file holds one, a single table many."""
    tensor = signature.person_input
    if (
        tensor is not None
        and kind_of(tensor) == "images"
        and not any(path.suffix.lower() in ARRAY_SUFFIXES for path in files)
    ):
        return ("file",)
    return ("index",) if len(files) == 1 else ("file", "index")


@contextmanager
def prediction_writer(
    path: Path, signature: Signature, probabilities: bool, places: Sequence[str] = ("file", "index")
) -> Iterator[WritePrediction]:
    """Yields a function that writes a sample and its outputs by name, with `probabilities` for all labels.

    `places` are the columns that tell which sample a row is of.

    The file appears at the end; after an error or an interruption an earlier file of that name is as it was.
    """
    if path.suffix.lower() == ".npz":
        with _array_writer(path, signature) as write_arrays:
            yield write_arrays
        return
    masks = [tensor for tensor in signature.outputs if is_mask(tensor) and find_spec("PIL") is not None]

    def row(sample: Sample, outputs: Arrays) -> Row:
        described = describe(signature, outputs, every=probabilities and not masks)
        place = {"file": sample.file, "index": sample.index}
        return {**{name: place[name] for name in places}, **described}

    mode, writer = WRITERS[path.suffix.lower()]
    with _named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        example = row(
            Sample("", 0, {}), {tensor.name: _blank(tensor.shape[1:], tensor.dtype) for tensor in signature.outputs}
        )
        with atomic_write(path, mode) as file, writer(file, example) as write:

            def write_sample(sample: Sample, outputs: Arrays) -> None:
                write(row(sample, outputs))
                for tensor in masks:
                    stem = f"{Path(sample.file).stem}_{sample.index}_{tensor.name}.png"
                    with atomic_write(path.with_name(f"{path.stem}_{stem}")) as picture:
                        picture.write(mask_as_png(tensor, outputs[tensor.name]))

            yield write_sample


def _blank(shape: tuple[int | str, ...], dtype: str) -> Array:
    return np.zeros([side if isinstance(side, int) else 1 for side in shape], dtype)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"output={path} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _array_writer(path: Path, signature: Signature) -> Iterator[WritePrediction]:
    """Collects the outputs of all samples, in the order of the rows; free axes are filled up with zeros."""
    rows: dict[str, list[Array]] = {tensor.name: [] for tensor in signature.outputs}

    def write(sample: Sample, outputs: Arrays) -> None:
        for name, found in rows.items():
            found.append(outputs[name])

    yield write
    with _named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            np.savez(file, **{name: _filled_up(found) for name, found in rows.items()})  # type: ignore[arg-type]


def _filled_up(rows: list[Array]) -> Array:
    sides = np.max([row.shape for row in rows], axis=0)
    filled = np.zeros((len(rows), *sides.astype(int)), rows[0].dtype)
    for place, row in enumerate(rows):
        filled[place][tuple(slice(side) for side in row.shape)] = row
    return filled


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

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list: pa.list_(pa.string())}
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
    """Gives each probability of a label, and each part of what several outputs say, a column of its own."""
    flat: Row = {}
    for name, value in row.items():
        prefix = {"probabilities": "probability", "shares": "share"}.get(name, name)
        if isinstance(value, dict):
            flat |= {f"{prefix}_{part}": inner for part, inner in _flat(value).items()}
        else:
            flat[name] = value
    return flat
