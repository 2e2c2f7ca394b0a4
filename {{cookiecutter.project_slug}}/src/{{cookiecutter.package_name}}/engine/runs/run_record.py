"""What is kept of a run beside its figures, in `run.json`: from which source it came, and how it ended."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from .. import rendezvous
from ..console import shown, write_json
from ..errors import UserError

RECORD, LOCK = "run.json", ".lock"
OVERRIDES = ".hydra/overrides.yaml"
OF_TRIALS = "+callbacks.search."  # options that make a training the trial of a search, which has ended
TIME = "%Y-%m-%d %H:%M:%S"
PATIENCE = 120  # seconds in which a shared disk gives up the lock of a machine that was lost

Record = dict[str, Any]


def read(run_dir: Path) -> Record:
    """Empty where a run did not come to its first step."""
    try:
        record: Record = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def write(run_dir: Path, **changed: Any) -> None:
    """Beside what it holds already, and whole or not at all."""
    incoming = run_dir / f"{RECORD}.incoming"
    write_json({**read(run_dir), **changed}, incoming)
    incoming.replace(run_dir / RECORD)


def begin(run_dir: Path, options: list[str] | None, origin: Mapping[str, Any], trackers: Mapping[str, str]) -> None:
    """Before the first step; a run that goes on keeps when it was started. `options` are those that were typed."""
    started = read(run_dir).get("started", now())
    begun = f"{now()}, process {os.getpid()}"
    write(run_dir, state="running", started=started, begun=begun, options=options, **origin, trackers={**trackers})


@contextmanager
def recording(run_dir: Path) -> Iterator[None]:
    """Writes how a run that came to its first step ended.

    Holds its lock meanwhile: a run whose record says `running` while nobody holds its lock was lost.
    """
    if rendezvous.is_follower():
        yield
        return
    lock, before, state, reason = FileLock(run_dir / LOCK), read(run_dir), "finished", None
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
        if read(run_dir) != before:  # else it was refused: what is told is of an earlier start
            write(run_dir, state=state, ended=now(), reason=reason)
        lock.release()
        (run_dir / LOCK).unlink(missing_ok=True)


def state_of(run_dir: Path) -> str:
    """finished, running, interrupted, failed; lost where it was ended without a word, `not begun` without a record."""
    state = str(read(run_dir).get("state", "not begun"))
    return "lost" if state == "running" and not is_held(run_dir / LOCK) else state


def is_held(lock: Path) -> bool:
    """Whether a living process holds it; where a disk knows no locks, whether the file is there."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, NotImplementedError):
        return True


def run_dirs(log_dir: Path) -> list[Path]:
    """Of `train`: single runs, and the jobs of sweeps."""
    return [path for pattern in ("runs/*", "multiruns/*/*") for path in (log_dir / "train").glob(pattern)]


def differences(run_dir: Path) -> list[str]:
    """The options that were typed: all others are those of `configs/`."""
    options = read(run_dir).get("options")
    if options is None:  # it did not come to its first step
        file = run_dir / OVERRIDES
        options = list(OmegaConf.load(file)) if file.is_file() else []
    return [str(option) for option in options if not str(option).startswith(OF_TRIALS)]


def note_bundle(checkpoint: Path, bundle: Path) -> None:
    """In the run that the checkpoint is of: going on, it would write over the file that the bundle was made of."""
    run_dir = checkpoint.parents[1]
    with suppress(OSError):  # a run of somebody else's, it may be
        if (run_dir / RECORD).is_file():
            write(run_dir, bundles=sorted({*read(run_dir).get("bundles", []), str(bundle.resolve())}))


def now() -> str:
    return time.strftime(TIME)
