"""Writes bundles of models that no training made, for the server and for `predict`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

import {{ cookiecutter.package_name }} as package

Arrays = dict[str, npt.NDArray[Any]]
LABELS = ["paper", "ink", "smudge"]


def write_bundle(
    folder: Path,
    model: onnx.ModelProto,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    golden: Arrays,
    max_batch_size: int = 0,
) -> Path:
    """Writes what the server needs of a bundle; `inputs` and `outputs` are entries of the manifest."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    plain = {name: array.astype(str) if array.dtype == object else array for name, array in golden.items()}
    np.savez(folder / "golden.npz", **plain)  # type: ignore[arg-type]
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    manifest: Mapping[str, Any] = {
        "schema_version": 2,
        "name": package.__name__,
        "version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "inputs": inputs,
        "outputs": outputs,
        "max_batch_size": max_batch_size,
        "tolerance": 1e-3,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def write_segmenter(folder: Path, *, with_row: bool) -> Path:
    """A label for each pixel: dark ones are paper, light ones ink, and those between smudges.

    `with_row`, a second input adds to the brightness of all pixels.
    """
    picture = helper.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])
    row = helper.make_tensor_value_info("row", onnx.TensorProto.FLOAT, ["batch", 1, 1, 1])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])
    constants = [
        helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]) for name, value in (("one", 1.0), ("half", 0.5))
    ]
    nodes = [
        helper.make_node("Add" if with_row else "Identity", ["picture", "row"][: 1 + with_row], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Mul", ["bright", "dark"], ["product"]),
        helper.make_node("Add", ["product", "half"], ["middle"]),
        helper.make_node("Concat", ["dark", "bright", "middle"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(nodes, "made", [picture, row][: 1 + with_row], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    bright = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (2, 1, 8, 1))
    golden = {"picture": bright, "row": np.zeros((2, 1, 1, 1), np.float32)}
    golden = {name: golden[name] for name in ("picture", "row")[: 1 + with_row]}
    expected = np.concatenate([1 - bright, bright, bright * (1 - bright) + 0.5], axis=1)
    entries = [
        {"name": "picture", "dtype": "float32", "shape": ["batch", 1, 8, 8], "range": [0.0, 1.0]},
        {"name": "row", "dtype": "float32", "shape": ["batch", 1, 1, 1]},
    ]
    output = {"name": "logits", "dtype": "float32", "shape": ["batch", 3, 8, 8], "labels": LABELS}
    return write_bundle(folder, model, entries[: 1 + with_row], [output], {**golden, "logits": expected}, 8)
