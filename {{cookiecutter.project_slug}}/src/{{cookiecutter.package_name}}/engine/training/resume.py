"""The checkpoint from which a run is continued after it ended, or after it lost a process."""

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
    """With `resume=`, or when processes were restarted: sets `ckpt_path` to the newest checkpoint of the run, if any.

    It replaces the starting point of the run, which it contains.
    """
    folder = Path(config["paths"]["output_dir"]) / "checkpoints"
    if not (rendezvous.is_restart() or config.get("resume")) or not any(folder.glob("*.ckpt")):
        return config
    return {**config, "ckpt_path": str(newest_checkpoint(folder)), "model": {**config["model"], "weights": None}}


def newest_checkpoint(folder: Path) -> Path:
    """The undamaged checkpoint of the latest step; warns of those that cannot be read.

    Checksums take time, so they are compared from the newest file on, until one is undamaged.
    """

    def age(path: Path) -> tuple[int, bool]:
        try:
            return load(path, check_sum=False).step, path.name == LAST
        except UserError:
            return sys.maxsize, False  # to be reported below

    damaged = []
    for path in sorted(folder.glob("*.ckpt"), key=age, reverse=True):
        try:
            load(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for sentence in damaged:
            log.warning("warning     %s", sentence)
        return path
    raise Fault(f"no checkpoint in {shown(folder)} can be read ({damaged[0].rstrip('.')}): start another run.")
