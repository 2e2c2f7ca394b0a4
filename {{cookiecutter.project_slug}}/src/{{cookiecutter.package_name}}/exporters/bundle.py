"""A bundle: `artifacts/<name>/<version>/`, published whole or not at all, and how it describes itself.

`manifest.json` is for programs, the model card for people; a summary travels inside each file.
"""

import errno
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint
from ..refusal import Refusal
from .gate import Parity
from .network import Signature

SCHEMA_VERSION = 1
PACKAGES = ("torch", "lightning", "onnx", "onnxruntime", "numpy")

USE = {
    "onnx": """
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
golden = np.load("golden.npz")
logits, probabilities = session.run(["logits", "probabilities"], {"input": golden["input"]})
assert np.allclose(logits, golden["logits"], atol=1e-4)
```
""",
    "torchscript": """
`model.pt` is loaded by `torch.jit.load("model.pt")`, in C++ by `torch::jit::load("model.pt")`. It is code: load only a
file that you trust.
""",
}


@contextmanager
def incoming(name_dir: Path) -> Iterator[Path]:
    """A folder beside the versions to build the next one in; whatever is left in it at the end is removed."""
    made = [folder for folder in (name_dir, name_dir.parent) if not folder.exists()]
    try:
        name_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".incoming-", dir=name_dir))
    except OSError as error:
        raise Refusal(f"paths.artifact_dir={name_dir.parent} cannot be written: {error.strerror}.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


def publish(folder: Path, seal: Callable[[Path, int], None]) -> Path:
    """Renames `folder` to the next version; `seal(folder, version)` writes what depends on the number.

    A rename to a folder with files in it fails, so of two exports at once one takes the next number.
    """
    folder.chmod(0o755)  # the temporary folder was private
    version = max(_versions(folder.parent), default=0)
    while True:
        version += 1
        seal(folder, version)
        try:
            return folder.rename(folder.parent / str(version))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _versions(name_dir: Path) -> list[int]:
    return [int(path.name) for path in name_dir.iterdir() if path.name.isdecimal()]


def write_json(contents: object, path: Path) -> None:
    path.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digest(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def card(name: str, version: int, created: str, checkpoint: Checkpoint, parities: list[Parity]) -> str:
    """The bundle's README, for the person who gets the files and nothing else."""
    spec, signature = checkpoint.spec, Signature.of(checkpoint.spec)
    low, high = spec.input_range
    shape = " x ".join(["batch", *map(str, spec.input_shape)])
    rows = "\n".join(
        f"| `{parity.file}` | {parity.num_bytes / 1024:,.0f} KiB | {parity.largest_difference:.1e} "
        f"| {parity.num_agreeing} of {parity.num_samples} | {parity.latency_ms:.3f} ms |"
        for parity in parities
    )
    return f"""# {name}, version {version}

Classifies `{spec.name}` into {spec.num_classes} labels: {", ".join(spec.labels)}.
Accuracy on the {parities[0].num_samples} samples of the test split: **{parities[0].accuracy:.4f}**.
Exported on {created} from epoch {checkpoint.epoch + 1} of its training.

## Input and output

| tensor | type | shape | |
| --- | --- | --- | --- |
| `{signature.input.name}` | {signature.input.dtype} | {shape} | raw, {low:g} to {high:g}; normalised inside |
| `logits` | float32 | batch x {spec.num_classes} | one figure a label |
| `probabilities` | float32 | batch x {spec.num_classes} | their softmax |

## Files

Each was loaded in a process of its own and compared with the trained model, which takes
{parities[0].eager_latency_ms:.3f} ms for one sample in eager mode (one thread, on the exporting machine).

| file | size | largest difference | same label | one sample |
| --- | --- | --- | --- | --- |
{rows}

The difference is max |a - b| / max(1, |b|). `manifest.json` holds the figures, versions and the sha256 of every file;
`golden.npz` holds real samples and the answers that any copy of this model must give.

## Use
{"".join(USE[parity.format] for parity in parities)}"""
