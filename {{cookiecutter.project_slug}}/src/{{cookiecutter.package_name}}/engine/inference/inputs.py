"""Reads files into raw inputs of a network: pictures or tables, and arrays as `.npy`."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .input_schema import ARRAY_SUFFIX, Array, InputSchema


@dataclass(frozen=True)
class Sample:
    """`index` counts the samples of one file."""

    file: str
    index: int
    values: Array


@dataclass(frozen=True)
class SkippedSample:
    """A sample that cannot be used, or a file where `index` is None."""

    file: str
    index: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.index is None else f' [{self.index}]'}: {self.reason}"


def find_files(given: Iterable[str], suffixes: Sequence[str]) -> list[Path]:
    """Returns each file once that `given` names: itself, by a folder that it lies in, or by a pattern.

    Of a folder only files that end in one of the suffixes are taken, and no hidden ones.
    """
    found: dict[Path, None] = {}
    for name in given:
        path = Path(name).expanduser()
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            remedy = f"give a file, a folder, a list as [a,b], or a pattern as 'data/*{suffixes[0]}'"
            raise UserError(f"input={name} does not exist: {remedy}.")
        files = [file for match in matches for file in (files_within(match, suffixes) if match.is_dir() else [match])]
        if not files:
            raise UserError(f"input={name} holds no file to read: the model takes {' '.join(suffixes)}.")
        found |= dict.fromkeys(files)
    return list(found)


def files_within(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Returns the files in the folder and below that end in one of the suffixes, sorted, without hidden ones."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")]
        found += [Path(parent) / name for name in names]
    return sorted(found)


def read_samples(path: Path, schema: InputSchema) -> Iterator[Sample | SkippedSample]:
    """Yields the raw samples of a file, each of `schema.shape`."""
    name = os.fsencode(path).decode(errors="backslashreplace")
    low, high = schema.range
    try:
        for index, values in enumerate(_read(path, schema)):
            if isinstance(values, str):
                yield SkippedSample(name, index, values)
            elif not schema.is_in_range(values):
                yield SkippedSample(name, index, f"its values are not within {low:g} to {high:g}")
            else:
                yield Sample(name, index, np.asarray(values))
    except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
        yield SkippedSample(name, None, reason_of(error))


def _read(path: Path, schema: InputSchema) -> Iterator[Array | str]:
    """Yields samples of `schema.shape`, or the reason why one cannot be used."""
    suffix = path.suffix.lower()
    if path.exists() and not path.is_file():  # to open a pipe would wait for somebody to write into it
        raise ValueError("it is no plain file")
    if suffix == ARRAY_SUFFIX:
        yield from _read_array(path, schema)
    elif suffix in schema.reader.SUFFIXES:
        yield from schema.reader.read(path, schema)
    else:
        raise ValueError(f"the model takes files that end in {' '.join(schema.suffixes)}")


def _read_array(path: Path, schema: InputSchema) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a file may be larger than the memory
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds several arrays: save one, with numpy.save")
    if array.shape == schema.shape:
        array = array[np.newaxis]
    if array.shape[1:] != schema.shape or array.dtype != schema.dtype:
        raise ValueError(f"it holds {array.dtype} {array.shape}, but the model takes {schema}, or many of them")
    if not len(array):
        raise ValueError("it holds no sample")
    return array


def reason_of(error: Exception) -> str:
    """Returns the message of an error on one line; of the operating system's errors without the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
