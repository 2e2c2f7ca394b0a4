"""The record of a run, `run.json`: its provenance (commit, versions, options), and how it ended."""

import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from .. import rendezvous
from ..console import shown, write_json
from ..errors import UserError

FILE, LOCK = "run.json", ".lock"
OVERRIDES, CONFIG = ".hydra/overrides.yaml", ".hydra/config.yaml"
SEARCH_OPTIONS = "+callbacks.search."  # options that make a training the trial of a search, which has ended
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
log = logging.getLogger(__name__)

PACKAGES = ("torch", "lightning", "torchmetrics", "numpy")
PATIENCE = 120  # seconds in which a shared disk gives up the lock of a machine that was lost

Record = dict[str, Any]


def read(run_dir: Path) -> Record:
    """Returns the record, which is empty where a run did not come to its first step."""
    try:
        record: Record = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def write(run_dir: Path, **changed: Any) -> None:
    """Changes some entries of the record."""
    write_json({**read(run_dir), **changed}, run_dir / FILE)


def write_start(
    run_dir: Path, options: list[str] | None, provenance: Mapping[str, Any], trackers: Mapping[str, str]
) -> None:
    """Called before the first step, with the typed options; a run that goes on keeps the time when it was started."""
    before, begun = read(run_dir), f"{now()}, process {os.getpid()}"
    steps = rendezvous.is_restart() and before.get("steps", False)
    changed = {"started": before.get("started", now()), "begun": begun, "options": options, **provenance}
    earlier = before.get("options", options) if before.get("steps", True) else before.get("earlier_options")
    write(run_dir, state="running", steps=steps, **changed, earlier_options=earlier, trackers={**trackers})


def write_first_step(run_dir: Path, samples: str, data: Mapping[str, Any]) -> None:
    """Called when nothing can be refused any more; `samples` describes those of an epoch, `data` the splits."""
    write(run_dir, steps=True, samples=samples, data=data)


@contextmanager
def locked_run(run_dir: Path) -> Iterator[None]:
    """Locks the directory while its run is going, and writes how a run ended that came to its first step.

    A run whose record says `running` while no process holds the lock was lost. Where a run was to go on and did not
    come to a step, its record stays as it was.
    """
    if rendezvous.is_follower():
        yield
        return
    lock, before, state, reason = FileLock(run_dir / LOCK), read(run_dir), "finished", None
    files = [path for path in (run_dir / FILE, run_dir / OVERRIDES, run_dir / CONFIG) if path.is_file()]
    contents = {path: path.read_bytes() for path in files}
    try:
        lock.acquire(timeout=PATIENCE if rendezvous.is_restart() else 0)
    except Timeout as error:
        raise UserError(
            f"{shown(run_dir)} is a run that is still going: wait until it has ended, or end it."
        ) from error
    except NotImplementedError:  # a shared disk without locks
        pass
    try:
        yield
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except BaseException as error:
        state, reason = "failed", " ".join(str(error).split()) or type(error).__name__
        raise
    finally:
        if before and state != "finished" and not read(run_dir).get("steps", True):
            for path, content in contents.items():
                path.write_bytes(content)
        elif read(run_dir) != before:  # else this start was refused, and the record is that of an earlier one
            write(run_dir, state=state, ended=now(), reason=reason)
        lock.release()
        (run_dir / LOCK).unlink(missing_ok=True)


def read_state(run_dir: Path) -> str:
    """Returns finished, running, interrupted or failed; lost after a kill; `not begun` without a record."""
    state = str(read(run_dir).get("state", "not begun"))
    return "lost" if state == "running" and not is_locked(run_dir / LOCK) else state


def is_locked(lock: Path) -> bool:
    """Whether a living process holds the lock; where a disk knows no locks, whether the file exists."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, NotImplementedError):
        return True


def run_dirs(log_dir: Path) -> list[Path]:
    """Returns the directories of all trainings: single runs, and the jobs of sweeps."""
    return [path for pattern in ("runs/*", "multiruns/*/*") for path in (log_dir / "train").glob(pattern)]


def find_checkpoint(ckpt_path: str, log_dir: Path) -> Path:
    """Returns the given path, or for `latest` the best checkpoint of the run that was trained last."""
    if ckpt_path != "latest":
        return Path(ckpt_path).expanduser().resolve()
    best = [path for run_dir in run_dirs(log_dir) if (path := run_dir / "checkpoints/best.ckpt").is_file()]
    if not best:
        raise UserError(
            f"ckpt_path=latest finds no trained run under {log_dir / 'train'}: train one with "
            f"'python -m {__name__.partition('.')[0]} train', or give ckpt_path=<file>."
        )
    latest = max(best, key=lambda path: path.stat().st_mtime)
    log.info("checkpoint  %s (the latest run)", latest)
    return latest


def check_checkpoint(path: Path, option: str = "ckpt_path") -> None:
    """Raises `UserError` for a checkpoint that is not there; `option` is the one that gave the path."""
    if path.is_dir():
        raise UserError(f"{option}={path} is a folder: give the file in it, as <run directory>/checkpoints/best.ckpt.")
    if not path.is_file():
        raise UserError(f"{option}={path} does not exist: give the path of a .ckpt file.")


def goes_on(run_dir: str, resume: str | None) -> bool:
    """Returns whether a training goes on with a run that has checkpoints, and so needs its starting point no more."""
    return (rendezvous.is_restart() or bool(resume)) and any(Path(run_dir).glob("checkpoints/*.ckpt"))


def typed_options(run_dir: Path) -> list[str]:
    """Returns the options that were typed; all others are those of the option files.

    Those of a start that was killed before its first step do not count.
    """
    record = read(run_dir)
    options = record.get("options" if record.get("steps", True) else "earlier_options")
    if options is None:  # the run did not come to its first step
        file = run_dir / OVERRIDES
        options = list(OmegaConf.load(file)) if file.is_file() else []
    return [str(option) for option in options if not str(option).startswith(SEARCH_OPTIONS)]


def add_bundle(checkpoint: Path, bundle: Path) -> None:
    """Notes an export in the checkpoint's run: if the run goes on, it overwrites the file that was exported."""
    run_dir = checkpoint.parents[1]
    with suppress(OSError):  # the run may be another user's
        if (run_dir / FILE).is_file():
            write(run_dir, bundles=sorted({*read(run_dir).get("bundles", []), str(bundle.resolve())}))


def now() -> str:
    return time.strftime(TIME_FORMAT)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def commit_words(git: Mapping[str, Any] | None) -> str:
    """Describes what `git_state` returned, in Markdown."""
    if git is None:
        return "no commit is known"
    return f"commit `{git['commit'][:12]}`" + ("" if git["clean"] else ", with changes that were not committed")


def git_state() -> dict[str, Any] | None:
    """Returns the commit of this project's source and whether all of it was committed; None outside a repository."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie in an environment within some other repository.
    if shutil.which("git") is None or git("ls-files", "--error-unmatch", "--", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "--verify", "HEAD")
    return None if commit is None else {"commit": commit, "clean": git("status", "--porcelain") == ""}
