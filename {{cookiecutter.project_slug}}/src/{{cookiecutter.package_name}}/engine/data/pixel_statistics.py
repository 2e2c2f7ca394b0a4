"""Mean and deviation of pixels, to the last bit the same on every machine."""

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

Sums = npt.NDArray[np.int64]


def pixel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of `(N, C, H, W)` uint8.

    Summed as whole numbers: a sum of floats depends on the number of threads, and so would the trained weights.
    """
    pictures = pixels.flatten(2).long()  # (N, C, H * W)
    return statistics_of(pictures.sum(dim=2).numpy(), pictures.square().sum(dim=2).numpy(), pictures.shape[2])


def statistics_of(sums: Sums, squares: Sums, num_pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The same, from the sums of each picture `(N, C)`; a channel that never changes has the deviation 1."""
    count = len(sums) * num_pixels
    means = [int(total) / count for total in sums.sum(axis=0)]
    variances = [int(total) / count - mean**2 for total, mean in zip(squares.sum(axis=0), means, strict=True)]
    return tuple(means), tuple(math.sqrt(variance) if variance > 0 else 1.0 for variance in variances)
