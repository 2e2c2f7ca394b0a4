"""Files to raw inputs of a network: pictures or tables, and arrays as `.npy`."""

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .input_schema import ARRAY, Array, InputSchema


@dataclass(frozen=True)
class Sample:
    """`index` counts the samples of one file."""

    file: str
    index: int
    values: Array


@dataclass(frozen=True)
class LeftOut:
    """What cannot be used: a sample, or the whole of a file."""

    file: str
    index: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.index is None else f' [{self.index}]'}: {self.reason}"


def find_files(given: Iterable[str], suffixes: Sequence[str]) -> list[Path]:
    """The files that are meant, each once: themselves, those in a folder and below, or those that fit a pattern.

    In a folder only those are meant that end in one of the suffixes, and no hidden ones.
    """
    found: dict[Path, None] = {}
    for name in given:
        path = Path(name).expanduser()
        if path.is_dir():
            files = files_within(path, suffixes)
        elif path.exists():
            files = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            files = [
                file for match in matches for file in (files_within(match, suffixes) if match.is_dir() else [match])
            ]
            if not matches:
                remedy = f"give a file, a folder, a list as [a,b], or a pattern as 'data/*{suffixes[0]}'"
                raise UserError(f"input={name} does not exist: {remedy}.")
        if not files:
            raise UserError(f"input={name} holds no file to read: the model takes {' '.join(suffixes)}.")
        found |= dict.fromkeys(files)
    return list(found)


def files_within(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """In the folder and below, but for what is hidden; sorted."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")]
        found += [Path(parent) / name for name in names]
    return sorted(found)


def read_samples(path: Path, accepted: InputSchema) -> Iterator[Sample | LeftOut]:
    """Raw samples, each of `accepted.shape`."""
    name = os.fsencode(path).decode(errors="backslashreplace")
    found = _read(path, accepted)
    low, high = accepted.range
    for index in itertools.count():
        try:
            values = next(found, None)
        except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
            yield LeftOut(name, None, reason_of(error))
            return
        if values is None:
            return
        if isinstance(values, str):
            yield LeftOut(name, index, values)
        elif not accepted.admits(values):
            yield LeftOut(name, index, f"its values are not within {low:g} to {high:g}")
        else:
            yield Sample(name, index, np.asarray(values))


def _read(path: Path, accepted: InputSchema) -> Iterator[Array | str]:
    """Samples of `accepted.shape`, or why one cannot be used."""
    suffix = path.suffix.lower()
    if path.exists() and not path.is_file():  # to open a pipe would wait for somebody to write into it
        raise ValueError("it is no plain file")
    if suffix == ARRAY:
        yield from _read_array(path, accepted)
    elif suffix in accepted.reader.SUFFIXES:
        yield from accepted.reader.read(path, accepted)
    else:
        raise ValueError(f"the model takes files that end in {' '.join(accepted.suffixes)}")


def _read_array(path: Path, accepted: InputSchema) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a file may be larger than the memory
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds several arrays: save one, with numpy.save")
    if array.shape == accepted.shape:
        array = array[np.newaxis]
    if array.shape[1:] != accepted.shape or array.dtype != accepted.dtype:
        raise ValueError(f"it holds {array.dtype} {array.shape}, but the model takes {accepted}, or many of them")
    if not len(array):
        raise ValueError("it holds no sample")
    return array


def reason_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
