"""`resume=latest` or `resume=<run directory>`: the options of that run again, in its directory."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from . import record
from .record import OVERRIDES
from .refusal import Fault, Refusal
from .strategies import ranks
from .terminal import shown

log = logging.getLogger(__name__)

OPTION = "resume="


def with_resumed(arguments: list[str]) -> list[str]:
    """The command line of a run that goes on: what it was started with, and over that what is typed now."""
    given = [argument.removeprefix(OPTION) for argument in arguments if argument.startswith(OPTION)]
    if not given or given[-1] == "null":
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise Refusal(f"resume={given[-1]} is one run, and -m makes many: leave one of them out.")
    log_dirs = [a.removeprefix("paths.log_dir=") for a in arguments if a.startswith("paths.log_dir=")]
    run_dir = find(given[-1], Path(log_dirs[-1] if log_dirs else "logs"))
    if not os.access(run_dir, os.W_OK):
        raise Refusal(f"{shown(run_dir)} cannot be written by this user: make it writable, or start another run.")
    place = QuotedString(str(run_dir), Quote.double).with_quotes()
    others = [argument for argument in arguments if not argument.startswith(OPTION)]
    typed = {_name(option) for option in others}
    kept = [option for option in record.differences(run_dir) if _name(option) not in typed]
    return [*kept, *others, f"resume={place}", f"hydra.run.dir={place}", "hydra.output_subdir=null"]


def _name(option: str) -> str:
    return option.lstrip("+~").split("=")[0]


def find(resume: str, log_dir: Path) -> Path:
    """For `latest` the run in whose directory something was written last."""
    if resume != "latest":
        run_dir = Path(resume.strip("'\"")).expanduser().resolve()
        if not (run_dir / OVERRIDES).is_file():
            raise Refusal(f"resume={resume} is no run directory: give one, as logs/train/runs/<time>, or latest.")
        return run_dir
    runs = [path for path in record.run_dirs(log_dir) if (path / OVERRIDES).is_file()]
    if not runs:
        raise Refusal(f"resume=latest finds no run under {log_dir}/train: start one without it, or give its directory.")
    return max(runs, key=_last_written).resolve()


def _last_written(run_dir: Path) -> float:
    return max(path.stat().st_mtime for path in (run_dir, *run_dir.glob("checkpoints/*"), *run_dir.glob("*.log")))


def going_on(config: dict[str, Any]) -> dict[str, Any]:
    """With `resume=`, or in the place of lost processes: from the newest whole checkpoint, where there is one already.

    What the job had started from is in it.
    """
    folder = Path(config["paths"]["output_dir"]) / "checkpoints"
    if not (ranks.is_restart() or config.get("resume")) or not any(folder.glob("*.ckpt")):
        return config
    return {**config, "ckpt_path": str(newest(folder)), "model": {**config["model"], "weights": None}}


def newest(folder: Path) -> Path:
    """The checkpoint of the latest step that can be read; those that cannot are told.

    To look at all of a file takes its time: that is done from the newest one on, until one is whole.
    """
    from .checkpoints import load
    from .whole import LAST

    def age(path: Path) -> tuple[int, bool]:
        try:
            return load(path, check_sum=False).step, path.name == LAST
        except Refusal:
            return sys.maxsize, False  # told below

    damaged = []
    for path in sorted(folder.glob("*.ckpt"), key=age, reverse=True):
        try:
            load(path)
        except Refusal as refusal:
            damaged.append(str(refusal))
            continue
        for sentence in damaged:
            log.warning("warning     %s", sentence)
        return path
    raise Fault(f"no checkpoint in {shown(folder)} can be read ({damaged[0].rstrip('.')}): start another run.")
