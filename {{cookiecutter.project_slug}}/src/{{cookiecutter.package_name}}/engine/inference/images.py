"""Picture files as arrays for the network; the data sets, `predict` and the server all read them here."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .signature import Array, TensorSignature, kind_of

PAGE = "page.html"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# By content, whatever the name: Pillow would hand an EPS file to Ghostscript, which runs programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MODES = {1: "L", 3: "RGB"}  # Pillow's modes by the number of channels
MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; a file of a few bytes can claim any size


def read_picture(file: Path | BinaryIO, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Returns a picture as uint8 `(C, H, W)`, resized to `shape`, rotated by its EXIF data, its transparency on black.

    Only the first frame of an animation is read; 16 bits a pixel become the upper 8. Raises `OSError` or `ValueError`
    for a file that is not a picture, damaged or too large.
    """
    channels, height, width = shape
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"its {opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}")
            opened.draft(None, (2 * max(height, width),) * 2)  # JPEG: a far larger one is decoded at 1/2, 1/4 or 1/8
            picture = _eight_bits_opaque(ImageOps.exif_transpose(opened)).convert(MODES[channels])
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


def read(path: Path, tensor: TensorSignature) -> Iterator[Array]:
    """Yields the one sample that a file holds."""
    yield _as_input(path, tensor)[0]


def read_body(body: bytes, tensor: TensorSignature) -> Array:
    """Returns the contents of a picture file as `(1, C, H, W)`."""
    return _as_input(BytesIO(body), tensor)


def read_object(row: Mapping[str, Any], tensor: TensorSignature) -> Array:
    """Refuses a JSON object: only rows of a table are sent as one."""
    raise ValueError("it is no list: send one sample, flat or nested, or a picture file")


def _as_input(file: Path | BinaryIO, tensor: TensorSignature) -> Array:
    if kind_of(tensor) != "images" or tensor.range is None:
        raise ValueError(f"the model takes {tensor}, no pictures")
    _, channels, height, width = cast(tuple[int, int, int, int], tensor.shape)
    pixels, dtype = read_picture(file, (channels, height, width))[np.newaxis], tensor.numpy_dtype
    low, high = tensor.range
    if (low, high) == (0, 255):
        return pixels.astype(dtype)
    scaled = low + pixels * ((high - low) / 255)
    return (np.rint(scaled) if dtype.kind in "ui" else scaled).astype(dtype)


def _eight_bits_opaque(picture: Image.Image) -> Image.Image:
    """Removes transparency, and reduces to 8 bits: Pillow's own conversion makes all above 255 white."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and which of them is white is not known")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture
