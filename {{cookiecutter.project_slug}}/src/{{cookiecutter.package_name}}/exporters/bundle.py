"""A bundle: `artifacts/<name>/<version>/`, published whole or not at all."""

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..refusal import Refusal


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
