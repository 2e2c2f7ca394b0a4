"""Writes a file as a whole or not at all: the earlier contents stay until the new ones are on the disk."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".incoming"  # the end of the name of a file that is being written


@contextmanager
def atomic_write(
    path: Path, mode: str = "wb", before_replace: Callable[[], None] | None = None, waits_for_disk: bool = True
) -> Iterator[IO[Any]]:
    """Yields a file that takes the place of `path` at the end of the block; after an error `path` is as it was.

    `before_replace` is called once the new contents are on the disk, right before they take their place. Without
    `waits_for_disk`, the file may be empty after a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            if waits_for_disk:
                os.fsync(file.fileno())
        if before_replace is not None:
            before_replace()
        temporary.replace(path)
    except BaseException:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
        raise
    if waits_for_disk:
        _sync_folder(path.parent)


def remove_temporary_files(folder: Path) -> None:
    """Removes what a process left in the folder that was killed while it wrote."""
    for left in folder.glob(f"*{TEMPORARY}"):
        left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Writes the names in the folder to the disk; Windows does so by itself and opens no folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
