"""Mean and standard deviation of pixels, the same to the last bit on every machine."""

import hashlib
import json
import logging
import math
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from torch import Tensor

from ..atomic import atomic_write
from ..console import bar
from ..cores import num_cores
from ..inference.images import BIT_DEPTH, read_picture
from ..inference.inputs import reason_of

log = logging.getLogger(__name__)

Sums = npt.NDArray[np.int64]

CACHE_VERSION = 2
NUM_ANNOUNCED = 1000  # pictures; a scan of fewer takes no time that needs a word


class Scan(NamedTuple):
    """Of N pictures: sums of the pixels and of their squares, `(N, C)`, and why one cannot be read ("" if it can).

    `remarks` say what is unusual about a picture that can be read. `bit_depth` is the number of bits that the pictures
    of more than 8 bits use together, or 16.
    """

    sums: Sums
    squares: Sums
    reasons: npt.NDArray[np.str_]
    remarks: npt.NDArray[np.str_]
    bit_depth: int


def pixel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of `(N, C, H, W)` uint8.

    Summed as integers: a sum of floats depends on the number of threads, and so would the trained weights.
    """
    pictures = pixels.flatten(2).long()  # (N, C, H * W)
    return statistics_of_sums(pictures.sum(dim=2).numpy(), pictures.square().sum(dim=2).numpy(), pictures.shape[2])


def statistics_of_sums(sums: Sums, squares: Sums, num_pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The same from the sums of each picture `(N, C)`; a constant channel has the standard deviation 1."""
    count = len(sums) * num_pixels
    means = [int(total) / count for total in sums.sum(axis=0)]
    variances = [int(total) / count - mean**2 for total, mean in zip(squares.sum(axis=0), means, strict=True)]
    return tuple(means), tuple(math.sqrt(variance) if variance > 0 else 1.0 for variance in variances)


def scan_pictures(files: list[Path], shape: tuple[int, int, int], cache_dir: Path) -> Scan:
    """Decodes every file as training will, to `(C, H, W)`, or reads what an earlier scan of the same files found.

    If the size or the time of one file has changed, all are scanned again.
    """
    stamps = [(str(path), *_stamp(path)) for path in files]
    name = f"pictures-{hashlib.sha256(json.dumps([CACHE_VERSION, shape, stamps]).encode()).hexdigest()[:32]}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    cached = cache_dir / f"{name}.npz"
    with FileLock(cache_dir / f"{name}.lock"):  # one of several processes scans, and the others wait for it
        if not cached.exists():
            with atomic_write(cached) as file:
                np.savez(file, **_decoded(files, shape)._asdict())
        with np.load(cached) as contents:
            scan = Scan(**contents)
            return scan._replace(bit_depth=int(scan.bit_depth))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns


def _decoded(files: list[Path], shape: tuple[int, int, int]) -> Scan:
    """Decodes the files, and once more if those of 16 bits use fewer of them, as cameras and scanners with 12 do."""
    if len(files) >= NUM_ANNOUNCED:
        log.info("looking at  %s pictures, once", f"{len(files):,}")
    scan, peak = _decoded_by(files, shape, BIT_DEPTH)
    if peak and peak.bit_length() < BIT_DEPTH:
        scan, _ = _decoded_by(files, shape, max(8, peak.bit_length()))
    return scan


def _decoded_by(files: list[Path], shape: tuple[int, int, int], bit_depth: int) -> tuple[Scan, int]:
    """Returns the largest value of the pictures of more than 8 bits as well."""
    with ThreadPool(num_cores()) as pool:  # Pillow decodes outside of Python's lock
        found = pool.imap(partial(_scan_picture, shape=shape, bit_depth=bit_depth), files, chunksize=16)
        rows = [next(found) for _ in bar(files, "looking at pictures")]
    sums, squares, reasons, remarks, peaks = zip(*rows, strict=True)
    words = np.array(reasons, dtype=np.str_), np.array(remarks, dtype=np.str_)
    return Scan(np.stack(sums), np.stack(squares), *words, bit_depth), max(peaks)


def _scan_picture(path: Path, shape: tuple[int, int, int], bit_depth: int) -> tuple[Sums, Sums, str, str, int]:
    try:
        picture = read_picture(path, shape, bit_depth)
    except (OSError, ValueError) as error:
        zeros = np.zeros(shape[0], dtype=np.int64)
        return zeros, zeros, reason_of(error), "", 0
    pixels = picture.pixels.reshape(shape[0], -1).astype(np.int64)
    return pixels.sum(axis=1), np.square(pixels).sum(axis=1), "", picture.remark, picture.peak
