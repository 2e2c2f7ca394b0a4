"""From which checkpoint a run goes on that was ended, or whose processes were lost."""

import logging
import sys
from pathlib import Path

from .. import rendezvous
from ..config.command_line import Config
from ..console import shown
from ..errors import Fault, UserError
from .checkpoint_io import LAST
from .checkpoints import load

log = logging.getLogger(__name__)


def from_newest_checkpoint(config: Config) -> Config:
    """With `resume=`, or in the place of lost processes: from the newest whole checkpoint, where there is one already.

    What the job had started from is in it.
    """
    folder = Path(config["paths"]["output_dir"]) / "checkpoints"
    if not (rendezvous.is_restart() or config.get("resume")) or not any(folder.glob("*.ckpt")):
        return config
    return {**config, "ckpt_path": str(newest_checkpoint(folder)), "model": {**config["model"], "weights": None}}


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint of the latest step that can be read; those that cannot are told.

    To look at all of a file takes its time: that is done from the newest one on, until one is whole.
    """

    def age(path: Path) -> tuple[int, bool]:
        try:
            return load(path, check_sum=False).step, path.name == LAST
        except UserError:
            return sys.maxsize, False  # told below

    damaged = []
    for path in sorted(folder.glob("*.ckpt"), key=age, reverse=True):
        try:
            load(path)
        except UserError as refusal:
            damaged.append(str(refusal))
            continue
        for sentence in damaged:
            log.warning("warning     %s", sentence)
        return path
    raise Fault(f"no checkpoint in {shown(folder)} can be read ({damaged[0].rstrip('.')}): start another run.")
