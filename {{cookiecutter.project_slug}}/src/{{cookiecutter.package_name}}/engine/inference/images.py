"""Picture files as the network takes them; the data sets, the loader and the server all read them through this."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .input_schema import Array, InputSchema

PAGE = "page.html"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# What is inside counts, not the name: Pillow would hand an EPS file to Ghostscript, which runs programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MODES = {1: "L", 3: "RGB"}  # by the number of channels
MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; a file of some bytes can claim any size


def read_picture(file: Path | BinaryIO, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """A picture as `(C, H, W)` of `shape`, uint8: turned as its EXIF data says, on black where it is transparent.

    Only the first frame of an animation is read; 16 bits a pixel become the upper 8. Raises `OSError` or `ValueError`
    for what is no picture, damaged or too large.
    """
    channels, height, width = shape
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"its {opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}")
            opened.draft(None, (2 * max(height, width),) * 2)  # JPEG: a far larger one is decoded at 1/2, 1/4 or 1/8
            picture = _flat(ImageOps.exif_transpose(opened)).convert(MODES[channels])
    except UnidentifiedImageError as error:
        raise ValueError("it is no picture, or damaged") from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead the decoder to
        raise ValueError(f"it cannot be decoded ({type(error).__name__}: {error})") from error
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))


def read(path: Path, accepted: InputSchema) -> Iterator[Array]:
    """The one sample that a file holds."""
    yield from _as_input(path, accepted)


def read_body(body: bytes, accepted: InputSchema) -> Array:
    """The contents of a picture file as `(1, *accepted.shape)`."""
    return _as_input(BytesIO(body), accepted)


def read_object(row: Mapping[str, Any], accepted: InputSchema) -> Array:
    raise ValueError("it is no list: send one sample, flat or nested, or a picture file")


def _as_input(file: Path | BinaryIO, accepted: InputSchema) -> Array:
    if len(accepted.shape) != 3 or accepted.shape[0] not in MODES:
        raise ValueError(f"the model takes {accepted}, no pictures")
    channels, height, width = accepted.shape
    pixels = read_picture(file, (channels, height, width))[np.newaxis]
    low, high = accepted.range
    if (low, high) == (0, 255):
        return pixels.astype(accepted.dtype)
    scaled = low + pixels * ((high - low) / 255)
    return (np.rint(scaled) if accepted.dtype.kind in "ui" else scaled).astype(accepted.dtype)


def _flat(picture: Image.Image) -> Image.Image:
    """Without transparency, and of 8 bits: Pillow's own conversion cuts off all that is brighter than 255."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and which of them is white is not known")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture
