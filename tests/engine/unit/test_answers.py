"""What a person sees of the outputs: labels, numbers and masks."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from {{ cookiecutter.package_name }}.engine.inference.answers import describe, is_mask, predicted
from {{ cookiecutter.package_name }}.engine.inference.signature import Signature, TensorSignature

INPUT = TensorSignature("x", "float32", ("batch", 2))
LABELS = ("a", "b", "c")
ONE = TensorSignature("probabilities", "float32", ("batch", 3), labels=LABELS)
SEVERAL = TensorSignature("probabilities", "float32", ("batch", 3), labels=LABELS, multiple=True)
NUMBER = TensorSignature("prediction", "float32", ("batch", 1))
LAST = np.array([0.2, 0.7, 0.6], np.float32)


def giving(*outputs: TensorSignature) -> Signature:
    return Signature((INPUT,), outputs, 64)


def test_predictions_are_described_by_their_labels() -> None:
    given = {"probabilities": LAST, "logits": np.zeros(3, np.float32)}
    logits = TensorSignature("logits", "float32", ("batch", 3))
    assert describe(giving(logits, ONE), given, every=False) == {"label": "b", "probability": 0.7}
    assert describe(giving(SEVERAL), given, every=False) == {"labels": ["b", "c"]}
    assert describe(giving(SEVERAL), given, every=True)["probabilities"] == {"a": 0.2, "b": 0.7, "c": 0.6}
    assert describe(giving(NUMBER), {"prediction": np.array([12.5], np.float32)}, every=True) == {"prediction": 12.5}


def test_several_outputs_stand_under_their_names() -> None:
    kind = TensorSignature("kind", "int64", ("batch",), labels=("cat", "dog"))
    given = {"probabilities": LAST, "kind": np.array(1)}
    assert describe(giving(ONE, kind), given, every=False) == {
        "probabilities": {"label": "b", "probability": 0.7},
        "kind": {"label": "dog"},
    }
    steps = TensorSignature("steps", "float32", ("batch", "time"))
    found = np.array([1, 2.5], np.float32)
    assert describe(giving(steps), {"steps": found}, every=True) == {"steps": [1.0, 2.5]}
    assert describe(giving(steps), {"steps": found}, every=False) == {"steps": "float32 (2,)"}


@pytest.mark.parametrize("whole_numbers", [True, False])
def test_mask_is_a_picture_whose_pixels_hold_the_labels(whole_numbers: bool) -> None:
    numbers = np.array([[0, 1, 1], [2, 0, 0]])
    if whole_numbers:
        mask, values = TensorSignature("mask", "int64", ("batch", 2, 3), labels=LABELS), numbers
    else:
        mask = TensorSignature("mask", "float32", ("batch", 3, 2, 3), labels=LABELS)
        values = np.eye(3, dtype=np.float32)[numbers].transpose(2, 0, 1)
    assert is_mask(mask)
    assert not is_mask(ONE)
    described = describe(giving(mask), {"mask": values}, every=True)
    assert described["shares"] == pytest.approx({"a": 3 / 6, "b": 2 / 6, "c": 1 / 6})
    assert described["colours"]["a"] == "#000000"
    picture = Image.open(io.BytesIO(base64.b64decode(described["mask"])))
    np.testing.assert_array_equal(np.asarray(picture), numbers)
    first = picture.convert("RGB").getpixel((1, 0))
    assert described["colours"]["b"] == "#" + bytes(first).hex()
    assert len({picture.convert("RGB").getpixel(place) for place in ((0, 0), (1, 0), (0, 1))}) == 3
    np.testing.assert_array_equal(predicted(mask, values[np.newaxis]), numbers[np.newaxis])
