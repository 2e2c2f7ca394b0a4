"""Reads files into raw inputs of a network: pictures or tables, and arrays as `.npy` and `.npz`."""

import glob
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import UserError, first_of
from .signature import ARRAY_SUFFIXES, BATCH, Array, Signature, reader_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One sample's arrays by the names of the inputs; `index` counts the samples of one file."""

    file: str
    index: int
    values: dict[str, Array]


@dataclass(frozen=True)
class SkippedSample:
    """A sample that cannot be used, or a file where `index` is None."""

    file: str
    index: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.index is None else f' [{self.index}]'}: {self.reason}"


def find_files(given: Iterable[str], signature: Signature) -> list[Path]:
    """Returns each file once that `given` names: itself, by a folder that it lies in, or by a pattern.

    Of a folder only files that the model can take are returned, and no hidden ones; the others are reported.
    """
    found: dict[Path, None] = {}
    passed_over: list[Path] = []
    suffixes, tensor = signature.suffixes, signature.person_input
    is_readable = (lambda path: False) if tensor is None else reader_of(tensor).is_readable
    for name in given:
        matches = matches_of(name)
        files: list[Path] = []
        for match in matches:
            taken, others = files_within(match, suffixes, is_readable) if match.is_dir() else ([match], [])
            files, passed_over = files + taken, passed_over + others
        if not files:
            raise UserError(f"input={name} holds no file to read: the model takes {' '.join(suffixes)}.")
        found |= dict.fromkeys(files)
    report_passed_over(passed_over)
    return list(found)


def matches_of(name: str) -> list[Path]:
    """Returns the file or folder of that name, or those that a pattern names; raises `UserError` if there are none."""
    path = Path(name).expanduser()
    matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not matches:
        raise UserError(
            f"input={name} does not exist: give a file, a folder, a list as [a,b], or a pattern as 'data/*.csv'."
        )
    return matches


def files_within(
    folder: Path, suffixes: Sequence[str], is_readable: Callable[[Path], bool]
) -> tuple[list[Path], list[Path]]:
    """Returns the files in the folder and below that can be read, and the others, sorted, without hidden ones.

    A file is read if it ends in one of the suffixes, or if `is_readable` finds it so. Links to folders are followed,
    to each folder once.
    """
    found: list[Path] = []
    others: list[Path] = []
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in visited:
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent) / name for name in files if not name.startswith(".")):
            is_taken = path.name.lower().endswith(tuple(suffixes)) or is_readable(path)
            (found if is_taken else others).append(path)
    return sorted(found), sorted(others)


def report_passed_over(files: Sequence[Path]) -> None:
    """Logs which files of folders are not used, in one line."""
    if files:
        log.warning("passed over %d files: %s", len(files), first_of([path.name for path in files]))


def read_samples(path: Path, signature: Signature) -> Iterator[Sample | SkippedSample]:
    """Yields the raw samples of a file, each without the batch axis."""
    name = os.fsencode(path).decode(errors="backslashreplace")
    try:
        for index, values in enumerate(_read(path, signature)):
            if isinstance(values, str):
                yield SkippedSample(name, index, values)
            elif outside := _out_of_range(values, signature):
                yield SkippedSample(name, index, outside)
            else:
                yield Sample(name, index, values)
    except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
        yield SkippedSample(name, None, reason_of(error))


def _out_of_range(values: dict[str, Array], signature: Signature) -> str | None:
    for tensor in signature.inputs:
        if tensor.range is not None and not tensor.is_in_range(values[tensor.name]):
            low, high = tensor.range
            owner = "its values" if len(values) == 1 else f"the values of '{tensor.name}'"
            return f"{owner} are not within {low:g} to {high:g}"
    return None


def _read(path: Path, signature: Signature) -> Iterator[dict[str, Array] | str]:
    """Yields samples, or the reason why one cannot be used."""
    suffix, tensor = path.suffix.lower(), signature.person_input
    if path.exists() and not path.is_file():  # to open a pipe would wait for somebody to write into it
        raise ValueError("it is no plain file")
    if suffix in ARRAY_SUFFIXES:
        yield from _read_arrays(path, signature)
    elif tensor is not None and (suffix in reader_of(tensor).SUFFIXES or reader_of(tensor).is_readable(path)):
        for values in reader_of(tensor).read(path, tensor):
            yield values if isinstance(values, str) else {tensor.name: values}
    else:
        raise ValueError(f"the model takes files that end in {' '.join(signature.suffixes)}")


def _read_arrays(path: Path, signature: Signature) -> Iterator[dict[str, Array]]:
    """Reads one array where there is one input, or an archive of arrays by name; each of one sample, or of many."""
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a file may be larger than the memory
    if isinstance(loaded, np.ndarray):
        if len(signature.inputs) > 1:
            names = ", ".join(tensor.name for tensor in signature.inputs)
            raise ValueError(f"it holds one array: save {names} by name, with numpy.savez")
        arrays = {signature.inputs[0].name: loaded}
    else:
        arrays = dict(loaded)
    first = signature.inputs[0]
    if first.name in arrays and arrays[first.name].ndim == len(first.sample_shape):
        arrays = {name: array[np.newaxis] for name, array in arrays.items()}
    sizes = replace(signature, max_batch_size=sys.maxsize).bind(arrays)
    for place in range(sizes[BATCH]):
        yield {name: np.asarray(array[place]) for name, array in arrays.items()}


def reason_of(error: Exception) -> str:
    """Returns the message of an error on one line; of the operating system's errors without the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
