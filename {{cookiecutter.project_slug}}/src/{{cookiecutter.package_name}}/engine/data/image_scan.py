"""What is in each picture file, looked at once and remembered: whether it can be read, and the sums of its pixels."""

import hashlib
import json
import logging
import os
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from ..atomic import atomic_write
from ..console import bar
from ..inference.images import read_picture
from ..inference.inputs import reason_of
from .pixel_statistics import Sums

log = logging.getLogger(__name__)

FORM = 1  # of what is remembered; another one is not read
MANY = 1000  # pictures, from which on it takes a while


class Found(NamedTuple):
    """Of N pictures: sums of the pixels and of their squares, `(N, C)`, and why one cannot be read ("" if it can)."""

    sums: Sums
    squares: Sums
    reasons: npt.NDArray[np.str_]


def look_at(files: list[Path], shape: tuple[int, int, int], cache_dir: Path) -> Found:
    """Decodes every file as training will, `(C, H, W)`; whole numbers, so that no order of threads changes a sum.

    A file that has another size or time than before is looked at again, together with all others.
    """
    stamps = [(str(path), *_stamp(path)) for path in files]
    name = f"pictures-{hashlib.sha256(json.dumps([FORM, shape, stamps]).encode()).hexdigest()[:32]}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    remembered = cache_dir / f"{name}.npz"
    with FileLock(cache_dir / f"{name}.lock"):  # of several processes one looks, and the others wait for it
        if not remembered.exists():
            with atomic_write(remembered) as file:
                np.savez(file, **_decoded(files, shape)._asdict())
        with np.load(remembered) as contents:
            return Found(**contents)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decoded(files: list[Path], shape: tuple[int, int, int]) -> Found:
    if len(files) >= MANY:
        log.info("looking at  %s pictures, once", f"{len(files):,}")
    sums = np.zeros((len(files), shape[0]), dtype=np.int64)
    squares, reasons = np.zeros_like(sums), []
    with ThreadPool(num_cores()) as pool:  # Pillow decodes outside of Python's lock
        found = pool.imap(partial(_look, shape=shape), files, chunksize=16)
        for row, _ in enumerate(bar(files, "looking at pictures")):
            sums[row], squares[row], reason = next(found)
            reasons.append(reason)
    return Found(sums, squares, np.array(reasons, dtype=np.str_))


def _look(path: Path, shape: tuple[int, int, int]) -> tuple[Sums, Sums, str]:
    nothing = np.zeros(shape[0], dtype=np.int64)
    try:
        pixels = read_picture(path, shape).reshape(shape[0], -1).astype(np.int64)
    except (OSError, ValueError) as error:
        return nothing, nothing, reason_of(error)
    return pixels.sum(axis=1), np.square(pixels).sum(axis=1), ""
