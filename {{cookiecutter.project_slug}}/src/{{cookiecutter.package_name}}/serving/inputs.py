"""Files to raw inputs of a network: pictures, and arrays as `.npy`."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from ..refusal import Refusal
from .pictures import MODES, SUFFIXES, read_picture

Array = npt.NDArray[Any]

ARRAY = ".npy"


@dataclass(frozen=True)
class Accepted:
    """What the network takes: one sample is `shape`, of `dtype`, its values from `range[0]` to `range[1]`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    range: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


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


def find_files(given: Iterable[str]) -> list[Path]:
    """The files that are meant, each once: themselves, those in a folder and below, or those that fit a pattern.

    In a folder only those are meant that can be read at all, and no hidden ones.
    """
    found: dict[Path, None] = {}
    for name in given:
        path = Path(name).expanduser()
        if path.is_dir():
            files = files_within(path)
        elif path.exists():
            files = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            files = [file for match in matches for file in (files_within(match) if match.is_dir() else [match])]
            if not matches:
                remedy = "give a file, a folder, a list as [a,b], or a pattern as 'pictures/*.png'"
                raise Refusal(f"input={name} does not exist: {remedy}.")
        if not files:
            raise Refusal(f"input={name} holds no file to read: give pictures ({' '.join(SUFFIXES)}) or {ARRAY}.")
        found |= dict.fromkeys(files)
    return list(found)


def files_within(folder: Path, suffixes: tuple[str, ...] = (*SUFFIXES, ARRAY)) -> list[Path]:
    """In the folder and below, but for what is hidden; sorted."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(suffixes) and not name.startswith(".")]
        found += [Path(parent) / name for name in names]
    return sorted(found)


def read_samples(path: Path, accepted: Accepted) -> Iterator[Sample | LeftOut]:
    """Raw samples, each of `accepted.shape`."""
    name = os.fsencode(path).decode(errors="backslashreplace")
    try:
        arrays = _read(path, accepted)
    except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
        yield LeftOut(name, None, reason_of(error))
        return
    low, high = accepted.range
    for index, values in enumerate(arrays):
        if not (low <= values.min() and values.max() <= high):  # of a NaN, neither holds
            yield LeftOut(name, index, f"its values are not within {low:g} to {high:g}")
        else:
            yield Sample(name, index, np.asarray(values))


def _read(path: Path, accepted: Accepted) -> Array:
    """`(N, *accepted.shape)`"""
    suffix = path.suffix.lower()
    if path.exists() and not path.is_file():  # to open a pipe would wait for somebody to write into it
        raise ValueError("it is no plain file")
    if suffix == ARRAY:
        return _read_array(path, accepted)
    if suffix not in SUFFIXES:
        raise ValueError(f"it is neither a picture ({' '.join(SUFFIXES)}) nor an array ({ARRAY})")
    return picture_as_input(path, accepted)


def picture_as_input(file: Path | BinaryIO, accepted: Accepted) -> Array:
    """`(1, *accepted.shape)`; raises `OSError` or `ValueError` for what is no picture, damaged or too large."""
    if len(accepted.shape) != 3 or accepted.shape[0] not in MODES:
        raise ValueError(f"the model takes {accepted}, no pictures")
    channels, height, width = accepted.shape
    pixels = read_picture(file, (channels, height, width))[np.newaxis]
    low, high = accepted.range
    if (low, high) == (0, 255):
        return pixels.astype(accepted.dtype)
    scaled = low + pixels * ((high - low) / 255)
    return (np.rint(scaled) if accepted.dtype.kind in "ui" else scaled).astype(accepted.dtype)


def _read_array(path: Path, accepted: Accepted) -> Array:
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
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
