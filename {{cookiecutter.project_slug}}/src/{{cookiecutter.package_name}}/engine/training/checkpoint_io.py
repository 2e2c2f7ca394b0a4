"""Checkpoint files: written whole or not at all, each with its sha256 beside it, the last one with that before it."""

import hashlib
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
INCOMING = ".incoming"


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint takes the place of an earlier one only once it is safe on the disk: a kill in between loses neither.

    `previous.ckpt` is what was `last.ckpt` before, for a disk that damages the newer one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        written, path = BytesIO(), Path(path)  # of a full disk torch's own writer tells as an internal error
        torch.save(checkpoint, written)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written.getbuffer() as contents:
            _put(path, contents, previous=path.with_name(PREVIOUS) if path.name == LAST else None)

    def remove_checkpoint(self, path: str | Path) -> None:
        super().remove_checkpoint(path)
        sum_file(Path(path)).unlink(missing_ok=True)


def take_as_last(path: Path) -> None:
    """For a run that goes on from another file: where nothing is left to train, no `last.ckpt` would follow."""
    _put(path.with_name(LAST), path.read_bytes())


def sum_file(path: Path) -> Path:
    """Read by `sha256sum -c` too."""
    return Path(f"{path}.sha256")


def is_damaged(path: Path) -> bool:
    """Whether it is not what was written; one without its sum, as a copy elsewhere, is taken as it is."""
    try:
        written = sum_file(path).read_text(encoding="ascii").split(maxsplit=1)
    except FileNotFoundError:
        return False
    except UnicodeDecodeError:
        return True
    with path.open("rb") as file:
        return written[:1] != [hashlib.file_digest(file, "sha256").hexdigest()]


def _put(path: Path, contents: Any, previous: Path | None = None) -> None:
    incoming = Path(f"{path}{INCOMING}")
    _write(incoming, contents)
    digest = hashlib.sha256(contents).hexdigest()
    if previous is not None and path.exists():
        _move(path, previous)
    sum_file(path).unlink(missing_ok=True)  # without one a file is whole, with that of another it is damaged
    incoming.replace(path)
    _write_sum(path, digest)
    _sync_folder(path.parent)


def _write(path: Path, contents: Any) -> None:
    try:
        with path.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write_sum(path: Path, digest: str) -> None:
    incoming = Path(f"{sum_file(path)}{INCOMING}")
    _write(incoming, f"{digest}  {path.name}\n".encode("ascii"))
    incoming.replace(sum_file(path))


def _move(path: Path, to: Path) -> None:
    """With its sum; at no moment does a file stand beside the sum of another."""
    sum_file(to).unlink(missing_ok=True)
    path.replace(to)
    if sum_file(path).exists():
        digest = sum_file(path).read_text(encoding="ascii").split(maxsplit=1)[0]
        sum_file(path).unlink()
        _write_sum(to, digest)


def _sync_folder(folder: Path) -> None:
    """The names in it; Windows writes them by itself, and opens no folder."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def clear_incoming(folder: Path) -> None:
    """What a run left that was killed while it saved."""
    for left in folder.glob(f"*{INCOMING}"):
        left.unlink(missing_ok=True)
