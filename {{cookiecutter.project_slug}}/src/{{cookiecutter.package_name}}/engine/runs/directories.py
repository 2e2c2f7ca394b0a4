"""Makes run directories, for one run alone or for several processes, and removes those of refused runs."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from .. import rendezvous
from ..errors import UserError

CREATED: set[Path] = set()  # folders that this process made for a run, or for a sweep and its jobs


def claim(folder: str) -> str:
    """Makes a folder for one run alone: two that start in the same second get `<folder>` and `<folder>-2`.

    The job of a cluster has the folder of its name, and ranks that were started again continue in theirs.
    """
    name = rendezvous.job_name()
    if name is not None:
        folder = str(Path(folder).parent / name)
        if rendezvous.is_restart() and Path(folder).is_dir():
            return folder
    number = 1
    while True:
        path = Path(folder if number == 1 else f"{folder}-{number}")
        try:
            _make(path)
        except FileExistsError:
            number += 1
        else:
            return str(path)


def share(folder: str) -> str:
    """Makes the folder unless it exists: for a run that goes on in it, and for several processes."""
    with suppress(FileExistsError):
        _make(Path(folder))
    return folder


def _make(path: Path) -> None:
    missing = [folder.resolve() for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"the run directory {path} cannot be made: {error.strerror}.") from error
    CREATED.update(missing)


def remove_empty_run(run_dir: Path, log_file: str) -> None:
    """Removes a refused job's directory if this process made it and it holds only Hydra's files and the log."""
    if not CREATED & {run_dir.resolve(), run_dir.resolve().parent}:
        return
    if all(path.name in (".hydra", log_file) for path in run_dir.iterdir()):
        logging.shutdown()  # closes the log file, which some systems do not remove while it is open
        shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
        (run_dir / log_file).unlink(missing_ok=True)
        run_dir.rmdir()
        with suppress(OSError):  # folders above it that this process made, unless others have used them since
            for parent in run_dir.resolve().parents:
                if parent in CREATED:
                    parent.rmdir()
