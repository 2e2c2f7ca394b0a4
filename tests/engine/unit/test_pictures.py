"""Pictures reach the network as a person sees them, or are refused."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from {{ cookiecutter.package_name }}.engine.inference import images as pictures
from {{ cookiecutter.package_name }}.engine.inference.images import read_picture
from {{ cookiecutter.package_name }}.engine.inference.inputs import Sample, SkippedSample, read_samples
from {{ cookiecutter.package_name }}.engine.inference.signature import Signature, TensorSignature

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def taking(dtype: str, shape: tuple[int, ...], bounds: tuple[float, float]) -> Signature:
    output = TensorSignature("output", "float32", ("batch", 2))
    return Signature((TensorSignature("x", dtype, ("batch", *shape), bounds),), (output,), 64)


def saved(picture: Image.Image, suffix: str = "png", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, suffix, **options)  # type: ignore[arg-type]
    file.seek(0)
    return file


def test_grey_picture_is_unchanged() -> None:
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(RAMP)), (1, 8, 8)).pixels[0], RAMP)


def test_sixteen_bits_become_the_upper_eight() -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 256 + 255)
    assert deep.mode == "I;16"
    for suffix in ("png", "tiff"):
        np.testing.assert_array_equal(read_picture(saved(deep, suffix), (1, 8, 8)).pixels[0], RAMP)


def test_bits_that_a_set_uses_become_eight_and_zero_may_be_white() -> None:
    twelve = Image.fromarray(RAMP.astype(np.uint16) * 16 + 15)
    picture = read_picture(saved(twelve, "tiff"), (1, 8, 8), bit_depth=12)
    np.testing.assert_array_equal(picture.pixels[0], RAMP)
    assert (picture.peak, picture.remark) == (252 * 16 + 15, "")
    inverted = read_picture(saved(twelve, "tiff", tiffinfo={262: 0}), (1, 8, 8), bit_depth=12)
    np.testing.assert_array_equal(inverted.pixels[0], 255 - RAMP)
    assert inverted.remark == "its value 0 is white"
    beyond = Image.fromarray(np.full((8, 8), 60_000, np.uint16))
    assert (read_picture(saved(beyond, "tiff"), (1, 8, 8), bit_depth=12).pixels == 255).all()
    assert read_picture(saved(Image.fromarray(RAMP)), (1, 8, 8)).peak == 0


def test_bits_of_the_training_are_used_in_production(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / "a.tif")
    tensor = TensorSignature("x", "uint8", ("batch", 1, 8, 8), (0.0, 255.0), bit_depth=12)
    signature = Signature((tensor,), (TensorSignature("output", "float32", ("batch", 2)),), 64)
    (sample,) = read_samples(tmp_path / "a.tif", signature)
    assert isinstance(sample, Sample)
    np.testing.assert_array_equal(sample.values["x"][0], RAMP)
    np.testing.assert_array_equal(pictures.read_body((tmp_path / "a.tif").read_bytes(), tensor).values[0, 0], RAMP)
    assert TensorSignature.from_dict(tensor.to_dict()) == tensor


@pytest.mark.parametrize("block", ["exif", "xmp"])
def test_damaged_block_leaves_the_picture_in(block: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = exif.tobytes()
    if block == "exif":
        file = saved(Image.fromarray(RAMP), "png", exif=whole[:8] + b"\xff" * 8 + whole[16:])
    else:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags.tagtype[700] = TiffTags.SHORT  # a number in the place of XMP's text
        tags[700], tags[0x0112] = 5, 3
        file = saved(Image.fromarray(RAMP), "tiff", tiffinfo=tags)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    (sample,) = read_samples(tmp_path / "a.png", taking("uint8", (1, 8, 8), (0.0, 255.0)))
    assert isinstance(sample, Sample)
    assert "it is not rotated, because its EXIF or XMP data is damaged" in caplog.text


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(dtype: npt.DTypeLike) -> None:
    with pytest.raises(ValueError, match="have 32 bits"):
        read_picture(saved(Image.fromarray(RAMP.astype(dtype)), "tiff"), (1, 8, 8))


def test_picture_is_rotated_by_its_exif_data() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = read_picture(saved(Image.fromarray(RAMP), exif=exif), (1, 8, 8))
    np.testing.assert_array_equal(turned.pixels[0], RAMP[::-1, ::-1])


def test_large_photograph_is_as_if_decoded_at_full_size() -> None:
    down, right = np.mgrid[0:480, 0:640]
    photograph = Image.fromarray(np.stack([down // 2, right // 3, (down + right) // 5], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    expected = np.asarray(photograph.rotate(-90, expand=True).resize((20, 30), Image.Resampling.BILINEAR), dtype=int)
    found = read_picture(saved(photograph, "jpeg", quality=95, exif=exif), (3, 30, 20)).pixels
    assert np.abs(found.transpose(1, 2, 0) - expected).max() <= 3


def test_transparency_lies_on_black() -> None:
    clear = np.full((8, 8, 4), 255, np.uint8)
    clear[:4, :, 3] = 0
    colours = read_picture(saved(Image.fromarray(clear)), (3, 8, 8)).pixels
    assert (colours[:, :4] == 0).all()
    assert (colours[:, 4:] == 255).all()


def test_colours_and_sizes_become_those_of_the_network() -> None:
    red = np.zeros((16, 24, 3), np.uint8)
    red[..., 0] = 200
    assert read_picture(saved(Image.fromarray(red)), (3, 8, 8)).pixels.shape == (3, 8, 8)
    grey = read_picture(saved(Image.fromarray(red)), (1, 8, 8)).pixels
    assert (grey == round(0.299 * 200)).all()
    frames = [Image.fromarray(np.full((8, 8), shade, np.uint8)) for shade in (10, 200)]
    animation = saved(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert (read_picture(animation, (1, 8, 8)).pixels == 10).all()


def test_file_that_claims_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(Image.fromarray(RAMP))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 63)
    with pytest.raises(ValueError, match="its 8 x 8 pixels are more than 63"):
        read_picture(file, (1, 8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)  # Pillow's own limit, of twice that, is met first
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_picture(file, (1, 8, 8))


def test_file_for_which_pillow_starts_another_program_is_no_picture(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    (skipped,) = read_samples(tmp_path / "a.png", taking("uint8", (1, 8, 8), (0.0, 255.0)))
    assert isinstance(skipped, SkippedSample)
    assert skipped.reason == "it is no picture, or damaged"


def test_truncated_picture_is_refused_or_complete() -> None:
    complete = saved(Image.fromarray(RAMP)).getvalue()
    for length in range(len(complete)):
        try:
            picture = read_picture(io.BytesIO(complete[:length]), (1, 8, 8))
        except (OSError, ValueError):
            continue
        np.testing.assert_array_equal(picture.pixels[0], RAMP)


FLOATS = taking("float32", (1, 8, 8), (-1.0, 1.0))


def test_pictures_for_a_network_of_another_range_are_scaled_to_it(tmp_path: Path) -> None:
    shades = np.full((8, 8), 255, np.uint8)
    shades[0] = 0
    Image.fromarray(shades).save(tmp_path / "a.png")
    (sample,) = read_samples(tmp_path / "a.png", FLOATS)
    assert isinstance(sample, Sample)
    values = sample.values["x"]
    assert values.dtype == np.float32
    assert (values[0, 0] == -1).all()
    assert (values[0, 1:] == 1).all()


def test_samples_outside_the_range_are_skipped_one_by_one(tmp_path: Path) -> None:
    array = np.zeros((5, 1, 8, 8), np.float32)
    array[1, 0, 3, 3], array[2, 0, 0, 0], array[4, 0, 0, 0] = np.nan, 1.5, -1.5
    np.save(tmp_path / "a.npy", array)
    found = list(read_samples(tmp_path / "a.npy", FLOATS))
    assert [isinstance(sample, SkippedSample) for sample in found] == [False, True, True, False, True]
    assert [sample.index for sample in found] == [0, 1, 2, 3, 4]
    assert str(found[1]) == f"{tmp_path / 'a.npy'} [1]: its values are not within -1 to 1"


def test_network_for_tables_takes_no_pictures(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    (skipped,) = read_samples(tmp_path / "a.png", taking("float32", (12,), (0.0, 1.0)))
    assert isinstance(skipped, SkippedSample)
    assert skipped.reason == "the model takes files that end in .npy .npz"
