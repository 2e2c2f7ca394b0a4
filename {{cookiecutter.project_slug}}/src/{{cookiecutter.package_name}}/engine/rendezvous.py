"""Ranks that `torchrun` or `srun` started: rank 0 reads the command line and sends each job to the other ranks.

So Hydra runs once here too: there is one run directory, one log, and a sweep starts each job on all ranks.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

FOREVER = timedelta(days=365)  # whoever started the ranks ends them all when one is lost (srun --kill-on-bad-exit=1)


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that `starter` (`torchrun` or `srun`) started."""

    starter: str
    rank: int
    world_size: int
    num_nodes: int

    @property
    def per_node(self) -> int:
        return self.world_size // self.num_nodes


def started() -> Ranks | None:
    """None for a process that was started by hand, or in a batch script without `srun`."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        world_size = int(env["WORLD_SIZE"])
        return Ranks("torchrun", int(env["RANK"]), world_size, world_size // int(env["LOCAL_WORLD_SIZE"]))
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        num_nodes = int(env.get("SLURM_STEP_NUM_NODES", env["SLURM_NNODES"]))
        return Ranks("srun", int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), num_nodes)
    return None


def is_follower() -> bool:
    """Whether rank 0 is another process."""
    ranks = started()
    return ranks is not None and ranks.rank > 0


def job_name() -> str | None:
    """The name of a job that a cluster restarts under the same name: `TRAIN_RUN_NAME`, or the numbers of SLURM."""
    env = os.environ
    if "TRAIN_RUN_NAME" in env:
        return env["TRAIN_RUN_NAME"]
    ranks = started()
    if ranks is None or ranks.starter != "srun":
        return None
    step = "" if env["SLURM_STEP_ID"] == "0" else f".{env['SLURM_STEP_ID']}"  # a script may hold several `srun`
    return f"slurm-{env['SLURM_JOB_ID']}{step}"


def is_restart() -> bool:
    """Whether these processes may replace others that were lost."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return "TRAIN_RUN_NAME" in os.environ or any(int(os.environ.get(name, 0)) > 0 for name in counts)


def refuse_restarts_that_hang() -> None:
    """Refuses settings of torchrun under which restarted ranks find what lost ranks left in the store, and hang."""
    ranks, env = started(), os.environ
    if ranks is None or int(env.get("TORCHELASTIC_MAX_RESTARTS", 0)) == 0 or ranks.starter != "torchrun":
        return
    if ranks.num_nodes > 1:
        raise UserError(
            "torchrun --max-restarts on several machines does not count alike on all of them: leave it out, set "
            "TRAIN_RUN_NAME=<name>, and start the command again to go on."
        )
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or "TRAIN_RUN_NAME" not in env:
        raise UserError(
            "torchrun --max-restarts needs TRAIN_RUN_NAME=<name> to find the run again, and "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 with --standalone, without which restarts hang."
        )


def send_job(config: dict[str, Any]) -> None:
    """Sends the next job from rank 0 to the other ranks."""
    number = _store().add(_key("jobs"), 1)
    _store().set(_key(f"job/{number}"), json.dumps(config))


def dismiss() -> None:
    """Tells the other ranks that there is no further job; waits for their answer, because rank 0 may hold the store."""
    from torch.distributed import DistStoreError

    ranks = started()
    assert ranks is not None
    send_job({})
    with suppress(DistStoreError):  # a rank that was lost hears nothing
        _store().wait([_key(f"heard/{rank}") for rank in range(1, ranks.world_size)], timedelta(seconds=10))


def receive_job(number: int, patience: timedelta) -> dict[str, Any] | None:
    """Waits for the job of this number, counted from 1, from rank 0; None if there is no further job."""
    from torch.distributed import DistStoreError

    ranks = started()
    assert ranks is not None
    try:
        _store().wait([_key(f"job/{number}")], patience)
    except DistStoreError:  # rank 0 waits for this rank, which has refused; when it ends, all are ended
        raise SystemExit(2) from None
    config: dict[str, Any] = json.loads(_store().get(_key(f"job/{number}")))
    if not config:
        _store().set(_key(f"heard/{ranks.rank}"), "")
    return config or None


def is_first_to_say(sentence: str) -> bool:
    """True for one rank alone, so that a sentence is printed once."""
    ranks = started()
    if ranks is None or ranks.world_size == 1:
        return True
    try:
        return _store().add(_key(f"said/{sentence}"), 1) == 1
    except RuntimeError:  # the rank that held the store has gone
        return True


def _key(name: str) -> str:
    return f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{name}"


@cache
def _store() -> "TCPStore":
    """The store that torch's process group uses too: torchrun's own, or one that rank 0 holds."""
    from torch.distributed import TCPStore

    ranks = started()
    assert ranks is not None
    if ranks.starter == "torchrun":
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        holds_it = ranks.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    else:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        cluster = SLURMEnvironment(auto_requeue=False)
        address, port, holds_it = cluster.main_address, cluster.main_port, ranks.rank == 0
    return TCPStore(address, port, is_master=holds_it, wait_for_workers=False, multi_tenant=True)
