"""Loads and runs a bundle with numpy and ONNX Runtime alone.

from <package>.engine.inference.runtime import Bundle

bundle = Bundle("artifacts/<name>/1")
bundle.predict({"x": inputs})  # a label and its probability, or whatever the outputs mean, for each sample
bundle({"x": inputs})  # the outputs of the network, by their names
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ..cores import num_threads_within_quota
from ..errors import BadBundle, UserError
from .answers import describe
from .signature import BATCH, STRING, Array, Arrays, Signature, TensorSignature
from .signing import SIGNATURE, check_signature

MANIFEST, GOLDEN = "manifest.json", "golden.npz"
SCHEMA_VERSION = 2  # of the manifest; 1 was that of template 0.9


class Bundle:
    """One exported model; all its files are checked against their hashes before one is loaded.

    `file` is one of the bundle's ONNX files. `num_threads=0` starts as many threads as there are cores, or as the CPU
    quota of the container is worth. With `key`, the file of a public key, only a bundle is loaded that was signed with
    the private one. Raises `BadBundle` for a file that is missing, changed, not listed or not signed, and
    `UserError` for a provider that is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        file: str = "model.onnx",
        providers: Sequence[str] = ("CPUExecutionProvider",),
        num_threads: int = 0,
        key: str | None = None,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.manifest = read_manifest(self.folder)
        if key is not None:
            check_signature(self.folder / MANIFEST, self.folder / SIGNATURE, key)
        check_files(self.folder, self.manifest)
        if file not in self.manifest["files"] or not file.endswith(".onnx"):
            files = [name for name in self.manifest["files"] if name.endswith(".onnx")]
            raise UserError(f"{file} is no ONNX file of {self.folder}, which has: {', '.join(files) or 'none'}.")
        try:
            self.signature = Signature.of_manifest(self.manifest)
        except (KeyError, TypeError, ValueError) as error:
            raise BadBundle(f"{MANIFEST} of {self.folder} describes no model: {error!r}.") from error
        self._names = [tensor.name for tensor in self.signature.outputs]
        self.session = _session(self.folder / file, providers, num_threads)

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Computes the outputs by name of raw inputs by name; raises `ValueError` for arrays that do not fit."""
        self.signature.bind(inputs)
        return self.run(inputs)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Computes outputs of inputs that are known to fit."""
        return dict(zip(self._names, self.session.run(self._names, inputs), strict=True))

    def predict(self, inputs: Arrays) -> list[dict[str, Any]]:
        """Returns `{"label": ..., "probability": ...}` or the like for each sample, in batches of `max_batch_size`."""
        if not self.signature.max_batch_size:
            raise ValueError("the model takes no batches: call the bundle itself")
        predictions: list[dict[str, Any]] = []
        for batch in batches(inputs, self.signature.max_batch_size):
            outputs = self(batch)
            for place in range(len(outputs[self._names[0]])):
                row = {name: output[place] for name, output in outputs.items()}
                predictions.append(describe(self.signature, row, every=False))
        return predictions


def batches(inputs: Arrays, size: int) -> Iterator[dict[str, Array]]:
    """Yields the samples of arrays `(N, ...)` in batches of up to `size`."""
    for start in range(0, len(next(iter(inputs.values()))), size):
        yield {name: array[start : start + size] for name, array in inputs.items()}


def first_samples(arrays: Arrays, num_samples: int) -> dict[str, Array]:
    """Returns real samples of arrays `(N, ...)`; where there are fewer than a batch takes, they come again."""
    return {name: array[np.arange(num_samples) % len(array)] for name, array in arrays.items()}


def find_bundle(bundle: str, artifact_dir: Path) -> Path:
    """Returns the folder itself, the newest version of `artifacts/<name>`, or for `latest` the newest bundle of all."""
    folder = Path(bundle).expanduser().resolve()
    if bundle == "latest":
        found = [path for path in artifact_dir.glob(f"*/*/{MANIFEST}") if path.parent.name.isdecimal()]
        if not found:
            raise UserError(f"bundle=latest finds none under {artifact_dir}: export one, or give bundle=<folder>.")
        # Not by the time of the file, which a copy changes, and `benchmark` when it adds its figures.
        created = {path.parent: str(read_manifest(path.parent).get("created")) for path in found}
        return max(created, key=lambda path: (created[path], int(path.name)))
    if not folder.is_dir():
        raise UserError(f"bundle={bundle} does not exist: give a folder as artifacts/<name>/<version>.")
    numbers = [] if (folder / MANIFEST).exists() else versions(folder)
    return folder / str(max(numbers)) if numbers else folder


def versions(name_dir: Path) -> list[int]:
    """Returns the versions in `artifacts/<name>`, in no particular order."""
    return [int(path.name) for path in name_dir.iterdir() if path.name.isdecimal() and path.is_dir()]


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise UserError(f"{folder} is no bundle: it has no {MANIFEST}. Give a folder as artifacts/<name>/<version>.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest.get("schema_version", 1)
        files = {name: (entry["sha256"], entry["bytes"]) for name, entry in manifest["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadBundle(f"{MANIFEST} of {folder} cannot be read: {type(error).__name__}: {error}.") from error
    if version == 1:
        raise BadBundle(f"{folder} was written by version 0.9 of the template, which was never released: export again.")
    if version != SCHEMA_VERSION:
        raise BadBundle(
            f"{folder} was written by another version of the template (schema version {version}, this project reads "
            f"{SCHEMA_VERSION}): update the project."
        )
    if escaping := [name for name in files if Path(name).name != name]:
        raise BadBundle(f"{MANIFEST} of {folder} lists {escaping[0]}, which is no plain file name.")
    return dict(manifest)


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises `BadBundle` unless the folder holds the files that the manifest lists, byte for byte, and no others."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise BadBundle(f"{path.name} in {folder} is no plain file: a bundle holds no links and no folders.")
        if path.name not in manifest["files"] and path.name not in (MANIFEST, SIGNATURE):
            raise BadBundle(f"{path.name} in {folder} is not listed in {MANIFEST}: it was not exported.")
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise BadBundle(f"{name} is missing in {folder}.")
        if path.stat().st_size != entry["bytes"] or digest(path) != entry["sha256"]:
            raise BadBundle(f"{name} in {folder} was changed after its export: its sha256 is another one.")


def read_golden(folder: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns real samples by the names of the inputs, and the outputs of the trained model for them."""
    signature = Signature.of_manifest(read_manifest(folder))
    try:
        with (folder / GOLDEN).open("rb") as file, np.load(file) as golden:
            inputs, outputs = (
                {tensor.name: _without_fixed_length(golden[tensor.name], tensor) for tensor in tensors}
                for tensors in (signature.inputs, signature.outputs)
            )
    except Exception as error:  # a damaged archive raises whatever its bytes lead the reader to
        raise BadBundle(f"{GOLDEN} in {folder} cannot be read: {type(error).__name__}: {error}.") from error
    sizes: dict[str, int] = {}
    for tensor in (*signature.inputs, *signature.outputs):
        array = {**inputs, **outputs}[tensor.name]
        try:
            tensor.bind(array.shape, sizes)
        except ValueError:
            sizes = {BATCH: 0}
        if array.dtype != tensor.numpy_dtype or not all(sizes.values()):
            raise BadBundle(f"{GOLDEN} in {folder} holds '{tensor.name}' as {array.dtype} {array.shape}.")
    return inputs, outputs


def _without_fixed_length(array: Array, tensor: TensorSignature) -> Array:
    """An archive holds text as arrays of one length; ONNX Runtime takes Python's own strings."""
    return array.astype(object) if tensor.dtype == STRING and array.dtype.kind == "U" else array


def difference(found: Array, expected: Array) -> float:
    """Returns max |a - b| / max(1, |b|): absolute for small values, relative for large ones; infinite for NaN.

    For whole numbers, truths and text it is the share of the elements that differ.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if expected.dtype.kind != "f":
        return float(np.mean(found != expected)) if expected.size else 0.0
    worst = np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected)), initial=0.0)
    return float(worst) if np.isfinite(worst) else float("inf")


def digest(path: Path) -> str:
    """Returns the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _session(path: Path, providers: Sequence[str], num_threads: int) -> onnxruntime.InferenceSession:
    available = onnxruntime.get_available_providers()
    for provider in providers:
        if provider not in available:
            known = ", ".join(available)
            raise UserError(f"providers=[{provider}] is not available here: this ONNX Runtime has {known}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or num_threads_within_quota()
    options.log_severity_level = 3  # errors: advice on the graph would stand between the lines of a server's JSON log
    session = onnxruntime.InferenceSession(path, options, providers=list(providers))
    if lost := [provider for provider in providers if provider not in session.get_providers()]:
        # ONNX Runtime only logs this, and continues with the next provider.
        reason = "its driver or libraries are missing, or too old"
        raise UserError(f"providers=[{lost[0]}] cannot be started here: {reason}.")
    return session
