"""Checkpoint files: written as a whole or not at all, with their sha256; the last one with the one before it."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..atomic import atomic_write
from ..errors import UserError

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
# Of `save_hyperparameters()`; the module is built again from the configuration of the run.
HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
TENSORS = (torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device)
PLAIN = (int, float, complex, str, bytes, bool, type(None), *TENSORS)
NOT_PLAIN = object()


class Contents(dict[str, Any]):
    """What a checkpoint holds, for hooks that look for what they have added."""

    def __missing__(self, name: str) -> Any:
        raise UserError(
            f"the checkpoint does not hold '{name}', for which on_load_checkpoint looks: let on_save_checkpoint add it "
            "as plain data (numbers, texts, tensors, lists and dictionaries)."
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint replaces an earlier one only once it is safe on the disk: a kill in between loses neither.

    `previous.ckpt` is what was `last.ckpt` before, for a disk that damages the newer one. Objects that would not load
    with `weights_only=True`, such as networks that a module adds, are left out and reported.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reported: set[str] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        left_out: dict[str, str] = {}
        others = {name: value for name, value in checkpoint.items() if name != "state_dict"}
        plain = {name: checkpoint[name] for name in checkpoint.keys() - others.keys()} | _plain(others, "", left_out)
        new = {name for name in left_out.keys() - self.reported if not name.startswith(HYPER_PARAMETERS)}
        if new:
            named = ", ".join(f"{name} ({left_out[name]})" for name in sorted(new))
            log.warning("warning     checkpoints hold plain data alone, so they leave out what was added as %s", named)
        self.reported |= left_out.keys()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _write(Path(path), lambda file: torch.save(plain, file))

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> Contents:
        """Loads plain data alone; Lightning 2.6 does not always hand on that it was asked to."""
        return Contents(super().load_checkpoint(*args, **{**kwargs, "weights_only": True}))

    def remove_checkpoint(self, path: str | Path) -> None:
        super().remove_checkpoint(path)
        sum_file(Path(path)).unlink(missing_ok=True)


def _plain(value: Any, place: str, left_out: dict[str, str]) -> Any:
    """The plain data in a value; what is not, in a dictionary, goes into `left_out` with its place and kind."""
    if isinstance(value, dict):
        found = {}
        for key, part in value.items():
            inner = f"{place}.{key}".lstrip(".")
            plain_key, plain_part = _plain(key, inner, left_out), _plain(part, inner, left_out)
            if plain_key is NOT_PLAIN or plain_part is NOT_PLAIN:
                left_out[inner] = type(part).__name__
            else:
                found[plain_key] = plain_part
        return found
    if type(value) in (list, tuple, set):
        parts = [_plain(part, place, left_out) for part in value]
        return NOT_PLAIN if any(part is NOT_PLAIN for part in parts) else type(value)(parts)
    if isinstance(value, np.generic):
        return value.item()
    return value if type(value) in PLAIN else NOT_PLAIN


def copy_to_last(path: Path) -> None:
    """For a run that goes on from another file: where nothing is left to train, no `last.ckpt` would follow."""
    with path.open("rb") as source:
        _write(path.with_name(LAST), lambda file: shutil.copyfileobj(source, file), keep_previous=False)


def sum_file(path: Path) -> Path:
    """The file with the checkpoint's sha256, which `sha256sum -c` reads too."""
    return Path(f"{path}.sha256")


def is_damaged(path: Path) -> bool:
    """Whether the contents are not those that were written.

    A file without its sum, as a copy, is taken as it is. So is one whose sum is empty, as a power cut leaves it: a
    checkpoint is on the disk before the run goes on, and its sum follows when the system writes it.
    """
    try:
        words = sum_file(path).read_text(encoding="ascii").strip("\0").split(maxsplit=1)
    except FileNotFoundError:
        return False
    except UnicodeDecodeError:
        return True
    if not words:
        return False
    with path.open("rb") as file:
        return words[:1] != [hashlib.file_digest(file, "sha256").hexdigest()]


class _HashingWriter:
    """Hands on what is written to `file`, and computes its sha256 on the way.

    An error of the disk waits in `error` until the caller is done: torch reports one that is raised within
    `torch.save` as an internal error of its own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, contents: Any) -> int:
        if self.error is None:
            try:
                self.file.write(contents)
                self.sha256.update(contents)
            except OSError as error:
                self.error = error
        return len(contents)

    def flush(self) -> None:
        """`torch.save` calls it at its end; `atomic_write` flushes the file."""


def _write(path: Path, save: Callable[[Any], object], keep_previous: bool = True) -> None:
    """Streams what `save` writes into the place of `path`; no file ever lies beside the sum of another."""

    def make_room() -> None:
        if keep_previous and path.name == LAST and path.exists():
            _rename(path, path.with_name(PREVIOUS))
        sum_file(path).unlink(missing_ok=True)

    with atomic_write(path, before_replace=make_room) as file:
        writer = _HashingWriter(file)
        save(writer)
        if writer.error is not None:
            raise writer.error
    _write_sum(path, writer.sha256.hexdigest())


def _write_sum(path: Path, digest: str) -> None:
    with atomic_write(sum_file(path), "w", waits_for_disk=False) as file:
        file.write(f"{digest}  {path.name}\n")


def _rename(path: Path, to: Path) -> None:
    """Renames a checkpoint together with its sum."""
    sum_file(to).unlink(missing_ok=True)
    path.replace(to)
    if sum_file(path).exists():
        digest = sum_file(path).read_text(encoding="ascii").split(maxsplit=1)[0]
        sum_file(path).unlink()
        _write_sum(to, digest)
