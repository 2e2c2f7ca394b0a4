"""Publishes a bundle, `artifacts/<name>/<version>/`, as a whole or not at all, with the manifest that describes it."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import atomic_write
from ..console import write_json
from ..errors import UserError
from ..inference.runtime import MANIFEST, SCHEMA_VERSION, digest, versions
from ..inference.signing import SIGNATURE
from ..runs import run_record
from .contract import Contract
from .gate import Limits, Parity
from .triton import CONFIG, check_config, config_text

if TYPE_CHECKING:
    from ..training.checkpoints import Checkpoint

PACKAGES = ("torch", "lightning", "onnx", "onnxruntime", "numpy")
ABANDONED_AFTER = 24 * 3600  # seconds
Sign = Callable[[Path, Path], None]  # writes the signature of the first file to the second


@contextmanager
def staging_folder(name_dir: Path) -> Iterator[Path]:
    """Yields a folder beside the versions, in which the next one is built; what is left in it at the end is removed."""
    created = [folder for folder in (name_dir, name_dir.parent) if not folder.exists()]
    try:
        name_dir.mkdir(parents=True, exist_ok=True)
        for abandoned in name_dir.glob(".incoming-*"):  # by an export that was killed
            if time.time() - abandoned.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(abandoned, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=".incoming-", dir=name_dir))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        place = Path(os.fsdecode(error.filename)) if error.filename else name_dir
        if error.errno is None or not (place.is_relative_to(name_dir) or name_dir.is_relative_to(place)):
            raise  # an error of the data, for example a missing file
        raise UserError(f"{name_dir} cannot be written: {error.strerror or error}; nothing was published.") from error
    finally:
        for parent in created:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def publish(folder: Path, seal: Callable[[Path, int], None]) -> Path:
    """Renames `folder` to the next version, after `seal(folder, version)` wrote what depends on the number.

    A rename to a folder that is not empty fails, so one of two simultaneous exports takes the next number.
    """
    folder.chmod(0o755)  # the temporary folder was private
    version = max(versions(folder.parent), default=0)
    while True:
        version += 1
        seal(folder, version)
        try:
            return folder.rename(folder.parent / str(version))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def check_triton_config(name_dir: Path, contract: Contract, has_onnx: bool) -> None:
    """Refuses an export that does not fit the configuration by which Triton serves every version of this name."""
    path = name_dir / CONFIG
    if path.exists():
        check_config(path, contract.signature)
        if not has_onnx:
            raise UserError(f"{path} serves model.onnx: add onnx to formats, or give another export.name=.")


def write_triton_config(folder: Path, contract: Contract) -> None:
    """Writes the configuration beside the version that is about to be published, unless there is one."""
    path = folder.parent / CONFIG
    if path.exists():  # a simultaneous export may have written it
        check_config(path, contract.signature)
        return
    with atomic_write(path, "w") as file:
        file.write(config_text(contract.name, contract.signature))


def describe(
    contract: Contract, checkpoint: "Checkpoint", parities: list[Parity], limits: Limits, **figures: Any
) -> dict[str, Any]:
    """Returns the manifest without what is known only at its publication: version, time and files."""
    config = json.dumps(checkpoint.config, sort_keys=True, ensure_ascii=False)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": contract.name,
        "inputs": [tensor.to_dict() for tensor in contract.signature.inputs],
        "outputs": [tensor.to_dict() for tensor in contract.signature.outputs],
        "max_batch_size": limits.max_batch_size,
        "opset": contract.opset,
        "max_metric_loss": limits.max_metric_loss,
        **figures,
        "parity": [parity.to_dict() for parity in parities],
        "checkpoint": {
            "file": checkpoint.path.name,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "sha256": contract.checkpoint_sha256,
        },
        "config": without_local_paths(checkpoint.config),
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "git": run_record.git_state(),
        "versions": run_record.versions(PACKAGES),
    }


def write_manifest(contents: Mapping[str, Any], folder: Path, sign: Sign | None = None) -> None:
    """Writes the manifest with size and hash of every file in `folder` and of those that `contents` lists already.

    With `sign` it gets a signature.
    """
    found = {
        path.name: {"sha256": digest(path), "bytes": path.stat().st_size}
        for path in folder.iterdir()
        if path.name not in (MANIFEST, SIGNATURE)
    }
    files = dict(sorted({**contents.get("files", {}), **found}.items()))
    write_json({**contents, "files": files}, folder / MANIFEST)
    if sign is not None:
        sign(folder / MANIFEST, folder / SIGNATURE)


def add_to(bundle: Path, manifest: Mapping[str, Any], write: Callable[[Path], None], sign: Sign | None = None) -> None:
    """Moves the files that `write(folder)` makes into a published bundle, the manifest that lists them
    and its signature last.

    After an error or an interruption the bundle is as it was.
    """
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=bundle.parent) as scratch:
        made, before = Path(scratch, "made"), Path(scratch, "before")
        made.mkdir()
        before.mkdir()
        write(made)
        write_manifest(manifest, made, sign)
        names = sorted((path.name for path in made.iterdir()), key=lambda name: (name in (MANIFEST, SIGNATURE), name))
        for name in names:
            if (bundle / name).is_file():
                shutil.copy2(bundle / name, before / name)
        try:
            for name in names:
                (made / name).replace(bundle / name)
        except BaseException:
            for name in names:
                if (before / name).exists():
                    (before / name).replace(bundle / name)
                elif not (made / name).exists():
                    (bundle / name).unlink()
            raise


def without_local_paths(section: Any) -> Any:
    """Shortens absolute paths to their last part: elsewhere they mean nothing, and they may name the user."""
    if isinstance(section, Mapping):
        return {key: without_local_paths(value) for key, value in section.items()}
    if isinstance(section, list):
        return [without_local_paths(value) for value in section]
    return Path(section).name if isinstance(section, str) and Path(section).is_absolute() else section
