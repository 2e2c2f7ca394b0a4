"""`resume=latest` or `resume=<run directory>`: continues a run in its directory, with its options."""

import os
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from ..console import shown
from ..errors import UserError
from . import run_record
from .run_record import OVERRIDES

OPTION = "resume="
STARTS = ("ckpt_path", "weights")


def with_resumed(arguments: list[str]) -> list[str]:
    """Returns the command line of a resumed run: the options that it was started with, then those typed now."""
    given = [argument.removeprefix(OPTION) for argument in arguments if argument.startswith(OPTION)]
    if not given or given[-1] == "null":
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(f"resume={given[-1]} is one run, and -m makes many: leave one of them out.")
    log_dirs = [a.removeprefix("paths.log_dir=") for a in arguments if a.startswith("paths.log_dir=")]
    run_dir = find(given[-1], Path(log_dirs[-1] if log_dirs else "logs"))
    if not os.access(run_dir, os.W_OK):
        raise UserError(f"{shown(run_dir)} cannot be written by this user: make it writable, or start another run.")
    quoted = QuotedString(str(run_dir), Quote.double).with_quotes()
    typed_now = [argument for argument in arguments if not argument.startswith(OPTION)]
    for option in typed_now:
        if _name(option) in STARTS or _name(option).startswith("hydra.run."):
            raise UserError(
                f"{option} is for the start of a run, and resume={given[-1]} goes on with one: leave it out."
            )
    before = run_record.typed_options(run_dir)
    added = {_name(option) for option in before if option.startswith("+")}
    typed_now = [f"+{option}" if _name(option) in added and option[0] not in "+~" else option for option in typed_now]
    names = {_name(option) for option in typed_now}
    earlier = [option for option in before if _name(option) not in names]
    return [*earlier, *typed_now, f"resume={quoted}", f"hydra.run.dir={quoted}", "hydra.output_subdir=null"]


def _name(option: str) -> str:
    return option.lstrip("+~").split("=")[0]


def find(resume: str, log_dir: Path) -> Path:
    """Returns the directory; for `latest` that of the run in which a file was written last."""
    if resume != "latest":
        run_dir = Path(resume.strip("'\"")).expanduser().resolve()
        if not (run_dir / OVERRIDES).is_file():
            raise UserError(f"resume={resume} is no run directory: give one, as logs/train/runs/<time>, or latest.")
        return run_dir
    runs = [path for path in run_record.run_dirs(log_dir) if (path / OVERRIDES).is_file()]
    if not runs:
        raise UserError(
            f"resume=latest finds no run under {log_dir}/train: start one without it, or give its directory."
        )
    return max(runs, key=_last_written).resolve()


def _last_written(run_dir: Path) -> float:
    return max(path.stat().st_mtime for path in (run_dir, *run_dir.glob("checkpoints/*"), *run_dir.glob("*.log")))
