"""What a person sees of a model's outputs: labels, numbers, masks."""

import base64
import colorsys
import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from .signature import Array, Arrays, Signature, TensorSignature


def describe(signature: Signature, outputs: Arrays, *, every: bool) -> dict[str, Any]:
    """Describes the outputs `(K, ...)` for one sample; with `every`, all labels and all numbers.

    Where some outputs have labels, only those are described. What one output says stands by itself, what several say
    under their names.
    """
    labelled = [tensor for tensor in signature.outputs if tensor.labels]
    tensors = labelled or list(signature.outputs)
    described = {tensor.name: _describe(tensor, outputs[tensor.name], every) for tensor in tensors}
    if len(tensors) == 1 and labelled:
        return dict(described[tensors[0].name])
    return described


def is_mask(tensor: TensorSignature) -> bool:
    """Whether the output has a label for each pixel: `(B, K, H, W)`, or whole numbers `(B, H, W)`."""
    return bool(tensor.labels) and len(tensor.shape) == (3 if _is_integer(tensor) else 4)


def mask_of(tensor: TensorSignature, values: Array) -> Array:
    """Returns the number of the label of each pixel, `(H, W)`."""
    return np.asarray(values if _is_integer(tensor) else values.argmax(axis=0))


def mask_as_png(tensor: TensorSignature, values: Array) -> bytes:
    """Returns a picture with a colour for each label; its pixels hold the labels' numbers. Needs Pillow."""
    from PIL import Image  # here: a project for tables need not have it

    picture = Image.fromarray(mask_of(tensor, values).astype(np.uint8), mode="P")
    picture.putpalette(_palette())
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def predicted(tensor: TensorSignature, values: Array) -> Array:
    """Returns what outputs `(B, ...)` decide: numbers of labels, truths with `multiple`, or the values themselves."""
    if not tensor.labels or _is_integer(tensor):
        return values
    return np.asarray(values > 0.5 if tensor.multiple else values.argmax(axis=1))


def figure(value: Any) -> float:
    """Rounds to as many digits as float32 has, or float64 if the value is of that type."""
    digits = 15 if isinstance(value, np.float64) else 7
    return float(f"{value:.{digits}g}")


def _is_integer(tensor: TensorSignature) -> bool:
    return tensor.numpy_dtype.kind in "iu"


def _describe(tensor: TensorSignature, values: Array, every: bool) -> Any:
    labels = tensor.labels
    if is_mask(tensor):
        counts = np.bincount(mask_of(tensor, values).ravel(), minlength=len(labels))
        shares = {
            label: figure(float(count / counts.sum())) for label, count in zip(labels, counts.tolist(), strict=False)
        }
        if not every or find_spec("PIL") is None:
            return {"shares": shares}
        colours = {label: "#" + bytes(_palette()[3 * k : 3 * k + 3]).hex() for k, label in enumerate(labels)}
        mask = base64.b64encode(mask_as_png(tensor, values)).decode()
        return {"shares": shares, "colours": colours, "mask": mask}
    if labels and _is_integer(tensor) and not values.ndim:
        return {"label": labels[int(values)]}
    if labels and values.ndim == 1 and not _is_integer(tensor):
        return _labels(tensor, values, every)
    if values.size == 1 and values.dtype.kind in "fiub":
        return figure(values.ravel()[0]) if values.dtype.kind == "f" else values.ravel()[0].item()
    return values.tolist() if every else f"{values.dtype} {values.shape}"


def _labels(tensor: TensorSignature, values: Array, every: bool) -> Mapping[str, Any]:
    described: dict[str, Any]
    if tensor.multiple:
        chosen = [label for label, value in zip(tensor.labels, values, strict=True) if value > 0.5]
        described = {"labels": chosen}
    else:
        best = int(values.argmax())
        described = {"label": tensor.labels[best], "probability": figure(values[best])}
    if every:
        described["probabilities"] = dict(zip(tensor.labels, map(figure, values), strict=True))
    return described


def _palette() -> list[int]:
    """Colours of the labels 0 to 255 that are told apart: black, then steps around the wheel of hues."""
    colours = [(0.0, 0.0, 0.0)]
    colours += [colorsys.hsv_to_rgb(number * 0.618 % 1, 0.65, 0.95 - 0.3 * (number % 3 == 0)) for number in range(255)]
    return [round(255 * part) for colour in colours for part in colour]
