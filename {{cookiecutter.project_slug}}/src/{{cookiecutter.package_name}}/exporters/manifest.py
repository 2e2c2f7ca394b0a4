"""`manifest.json`: everything a program must know of a bundle; and the part of it that travels inside each file."""

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint
from .bundle import digest
from .gate import Parity
from .signature import Signature

SCHEMA_VERSION = 1
PACKAGES = ("torch", "lightning", "onnx", "onnxruntime", "numpy")


def summarise(name: str, checkpoint: Checkpoint, signature: Signature) -> dict[str, str]:
    """For ONNX's `metadata_props` and TorchScript's extra files: text only, and nothing that changes by version."""
    return {
        "name": name,
        "schema_version": str(SCHEMA_VERSION),
        "inputs": json.dumps([signature.input.to_dict()]),
        "outputs": json.dumps([tensor.to_dict() for tensor in signature.outputs]),
        "labels": json.dumps(checkpoint.spec.labels, ensure_ascii=False),
        "checkpoint_sha256": digest(checkpoint.path),
    }


def manifest(
    name: str,
    version: int,
    created: str,
    checkpoint: Checkpoint,
    parities: list[Parity],
    max_batch_size: int,
    folder: Path,
) -> dict[str, Any]:
    """Of the bundle in `folder`, as it is about to be published; lists every file that lies there."""
    spec, signature = checkpoint.spec, Signature.of(checkpoint.spec)
    config = json.dumps(checkpoint.config, sort_keys=True, ensure_ascii=False)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "version": version,
        "created": created,
        "task": spec.task,
        "data": spec.name,
        "inputs": [{**signature.input.to_dict(), "range": list(spec.input_range)}],
        "outputs": [tensor.to_dict() for tensor in signature.outputs],
        "labels": list(spec.labels),
        "preprocessing": {"where": "inside the graph", "mean": list(spec.mean), "std": list(spec.std)},
        "max_batch_size": max_batch_size,
        "metrics": {"test/acc": parities[0].accuracy},
        "parity": [asdict(parity) for parity in parities],
        "checkpoint": {"file": checkpoint.path.name, "epoch": checkpoint.epoch, "sha256": digest(checkpoint.path)},
        "config": checkpoint.config,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}},
        "files": {
            path.name: {"sha256": digest(path), "bytes": path.stat().st_size}
            for path in sorted(folder.iterdir())
            if path.name != "manifest.json"
        },
    }
