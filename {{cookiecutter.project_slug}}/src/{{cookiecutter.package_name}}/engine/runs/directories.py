"""Run directories: made for one run alone, shared by several processes, removed where nothing came of a run."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from .. import rendezvous
from ..errors import UserError

CLAIMED: set[Path] = set()  # folders that this process made for a run, or for a sweep and its jobs


def claim(folder: str) -> str:
    """Makes the folder for this run alone: two that start in the same second get `<folder>` and `<folder>-2`.

    A job of a cluster has the folder of its name, and ranks that were started again have the one that was theirs.
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
    """Makes the folder unless it is there: for what goes on in it, and for several processes."""
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
    CLAIMED.update(missing)


def remove_empty_run(run_dir: Path, log_file: str) -> None:
    """Of a refused job: only if it was made for it, and nothing is in it but Hydra's notes and the log."""
    if not CLAIMED & {run_dir.resolve(), run_dir.resolve().parent}:
        return
    if all(path.name in (".hydra", log_file) for path in run_dir.iterdir()):
        logging.shutdown()  # closes the log file, which some systems do not remove while it is open
        shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
        (run_dir / log_file).unlink(missing_ok=True)
        run_dir.rmdir()
        with suppress(OSError):  # those above it that were made for it, unless others have used them since
            for parent in run_dir.resolve().parents:
                if parent in CLAIMED:
                    parent.rmdir()
