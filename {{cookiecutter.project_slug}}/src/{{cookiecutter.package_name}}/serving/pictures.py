"""Picture files as the network takes them; the data sets, the loader and the server all read them through this."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}  # by the number of channels


def read_picture(file: Path | BinaryIO, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """A picture as `(C, H, W)` of `shape`, uint8: turned as its EXIF data says, on black where it is transparent.

    Only the first frame of an animation is read. Raises `OSError` or `ValueError` for what is no picture or too large.
    """
    channels, height, width = shape
    with Image.open(file) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
        picture = picture.convert(MODES[channels])
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))
