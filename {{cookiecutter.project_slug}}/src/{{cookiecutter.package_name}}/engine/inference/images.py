"""Picture files as arrays for the network; the data sets, `predict` and the server all read them here."""

import logging
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .signature import Array, ReadSamples, TensorSignature, kind_of

log = logging.getLogger(__name__)

PAGE = "page.html"
SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# By content, whatever the name: Pillow would hand an EPS file to Ghostscript, which runs programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MODES = {1: "L", 3: "RGB"}  # Pillow's modes by the number of channels
MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; a file of a few bytes can claim any size
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF and its value
BIT_DEPTH = 16  # of a grey value in a file that has more than 8 bits for it


class Picture(NamedTuple):
    """Pixels `(C, H, W)`, uint8; `peak` is the largest value of a file of more than 8 bits, and 0 for other files.

    `remark` says what of the file could not be used, or was read otherwise than usual; it is empty for most files.
    """

    pixels: npt.NDArray[np.uint8]
    peak: int
    remark: str


def read_picture(file: Path | BinaryIO, shape: tuple[int, int, int], bit_depth: int = BIT_DEPTH) -> Picture:
    """Reads a picture, resized to `shape`, rotated by its EXIF data, its transparency on black.

    Only the first frame of an animation is read. Grey values of more than 8 bits are reduced to the upper 8 of the
    `bit_depth` bits that are used. Raises `OSError` or `ValueError` for a file that is not a picture, damaged or too
    large.
    """
    channels, height, width = shape
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"its {opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}")
            opened.draft(None, (2 * max(height, width),) * 2)  # JPEG: a far larger one is decoded at 1/2, 1/4 or 1/8
            turned, remark = _turned(opened)
            peak = 0
            if turned.mode.startswith("I;16"):
                is_inverted = getattr(opened, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
                turned, peak = _eight_bits(turned, bit_depth, is_inverted)
                remark = "; ".join(filter(None, [remark, "its value 0 is white" if is_inverted else ""]))
            picture = _opaque(turned).convert(MODES[channels])
    except UnidentifiedImageError as error:
        raise ValueError("it is no picture, or damaged") from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead the decoder to
        raise ValueError(f"it cannot be decoded ({type(error).__name__}: {error})") from error
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.uint8).reshape(height, width, channels)
    return Picture(np.ascontiguousarray(pixels.transpose(2, 0, 1)), peak, remark)


def is_readable(path: Path) -> bool:
    """Whether the content of a file is that of a picture, whatever its name; reads its beginning alone."""
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # a damaged file raises whatever its bytes lead the decoder to
        return False


def read(path: Path, tensor: TensorSignature) -> Iterator[Array]:
    """Yields the one sample that a file holds."""
    values, remark = _as_input(path, tensor)
    if remark:
        log.warning("look at     %s: %s", path, remark)
    yield values[0]


def read_body(body: bytes, tensor: TensorSignature) -> ReadSamples:
    """Returns the contents of a picture file as `(1, C, H, W)`."""
    return ReadSamples(_as_input(BytesIO(body), tensor)[0], [{}])


def read_object(row: Mapping[str, Any], tensor: TensorSignature) -> ReadSamples:
    """Refuses a JSON object: only rows of a table are sent as one."""
    raise ValueError("it is no list: send one sample, flat or nested, or a picture file")


def _as_input(file: Path | BinaryIO, tensor: TensorSignature) -> tuple[Array, str]:
    """Returns a picture as `(1, C, H, W)` in the range of the tensor, and what is to be said of it."""
    if kind_of(tensor) != "images" or tensor.range is None:
        raise ValueError(f"the model takes {tensor}, no pictures")
    _, channels, height, width = cast(tuple[int, int, int, int], tensor.shape)
    picture = read_picture(file, (channels, height, width), tensor.bit_depth or BIT_DEPTH)
    pixels, dtype = picture.pixels[np.newaxis], tensor.numpy_dtype
    low, high = tensor.range
    if (low, high) == (0, 255):
        return pixels.astype(dtype), picture.remark
    scaled = low + pixels * ((high - low) / 255)
    return (np.rint(scaled) if dtype.kind in "ui" else scaled).astype(dtype), picture.remark


def _turned(picture: Image.Image) -> tuple[Image.Image, str]:
    """Rotates a picture as its EXIF data says; a damaged block of EXIF or XMP leaves it as it is."""
    try:
        return ImageOps.exif_transpose(picture), ""
    except Exception as error:  # the block may hold any bytes; damaged pixels are found when they are converted
        return picture, f"it is not rotated, because its EXIF or XMP data is damaged ({type(error).__name__})"


def _eight_bits(picture: Image.Image, bit_depth: int, is_inverted: bool) -> tuple[Image.Image, int]:
    """Takes the upper 8 of the bits that are used, and the largest value: Pillow makes all above 255 white."""
    values, white = np.asarray(picture).astype(np.uint16), (1 << bit_depth) - 1
    peak = int(values.max(initial=0))
    values = np.minimum(values, white)
    values = white - values if is_inverted else values
    return Image.fromarray((values >> (bit_depth - 8)).astype(np.uint8)), peak


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and which of them is white is not known")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture
