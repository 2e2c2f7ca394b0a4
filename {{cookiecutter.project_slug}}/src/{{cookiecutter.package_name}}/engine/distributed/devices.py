"""Chooses the devices of a run, and refuses what this machine does not have."""

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError
from ..rendezvous import Ranks, started

ONE_PROCESS = ("single", "dp")
ANY = (None, "auto", -1)


@dataclass(frozen=True)
class Devices:
    """The devices of each of `num_nodes` machines; `accelerator` is cpu, gpu or mps.

    On the CPU, `indices` number the processes.
    """

    accelerator: str
    indices: tuple[int, ...]
    num_nodes: int = 1

    @property
    def num_devices(self) -> int:
        return len(self.indices) * self.num_nodes

    def to_torch(self) -> list[torch.device]:
        if self.accelerator == "cpu":
            return [torch.device("cpu")] * len(self.indices)
        kind = {"gpu": "cuda", "mps": "mps"}[self.accelerator]
        return [torch.device(kind, index) for index in self.indices]

    def for_trainer(self) -> int | list[int]:
        return len(self.indices) if self.accelerator == "cpu" else list(self.indices)


def resolve_devices(
    accelerator: str, requested: int | str | list[int] | None, strategy: str, num_nodes: int | None = None
) -> Devices:
    """Raises `UserError` for what this machine or the strategy cannot do.

    `requested` is `trainer.devices`: a number, a list of indices, `auto` or null (all that the strategy can use). If
    `torchrun` or `srun` started the processes, it has chosen their number, and `num_nodes` with it.
    """
    accelerator = _resolve_accelerator(accelerator)
    available = _count(accelerator)
    ranks = started()
    if ranks is not None and ranks.world_size > 1 and strategy in ONE_PROCESS:
        raise UserError(
            f"strategy={strategy} is one process, but {ranks.starter} started {ranks.world_size}: "
            f"take strategy=ddp, or start it without {ranks.starter}."
        )
    if ranks is not None and strategy not in ONE_PROCESS and requested in ANY:
        requested = ranks.per_node
    indices = _indices(requested, available, accelerator, strategy)
    if not indices or len(set(indices)) != len(indices) or min(indices) < 0:
        raise UserError(f"trainer.devices={requested} names no set of devices: give a number of 1 or more, or a list.")
    if accelerator != "cpu" and max(indices) >= available:
        remedy = f"give trainer.devices={available} or less"
        if ranks is not None:
            remedy = f"{ranks.starter} must start as many processes as each of them sees (not --gpus-per-task)"
        raise UserError(
            f"trainer.devices={requested} asks for more than this machine has ({available} {accelerator}): {remedy}."
        )
    if strategy == "single" and len(indices) > 1:
        raise UserError(
            f"strategy=single uses one device, but trainer.devices={requested}: "
            "take strategy=ddp, or leave trainer.devices out."
        )
    if strategy == "dp" and accelerator != "gpu" and len(indices) > 1:
        raise UserError(
            f"strategy=dp spreads a batch over GPUs, but trainer.devices={requested} on the {accelerator}: "
            "take strategy=ddp, which runs on CPU processes too."
        )
    if ranks is not None and strategy not in ONE_PROCESS and len(indices) != ranks.per_node:
        raise UserError(
            f"trainer.devices={requested}, but {ranks.starter} started {ranks.per_node} processes on each machine: "
            "leave trainer.devices out."
        )
    return Devices(accelerator, tuple(indices), _num_nodes(num_nodes, ranks))


def _num_nodes(requested: int | None, ranks: Ranks | None) -> int:
    if ranks is None and requested not in (None, 1):
        raise UserError(
            f"trainer.num_nodes={requested} needs a process on each machine: start the command with "
            f"'torchrun --nnodes {requested}' on all of them, or with srun."
        )
    num_nodes = 1 if ranks is None else ranks.num_nodes
    if ranks is not None and requested not in (None, num_nodes):
        raise UserError(
            f"trainer.num_nodes={requested}, but {ranks.starter} started processes on {num_nodes}: "
            "leave trainer.num_nodes out."
        )
    return num_nodes


def _resolve_accelerator(accelerator: str) -> str:
    has = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return next(name for name, present in has.items() if present)
    if accelerator == "cuda":
        accelerator = "gpu"
    if accelerator not in has:
        raise UserError(f"trainer.accelerator={accelerator} is no option: choose one of: auto, {', '.join(has)}.")
    if not has[accelerator]:
        raise UserError(
            f"trainer.accelerator={accelerator}, but this machine has none: take trainer=auto or trainer=cpu."
        )
    return accelerator


def _count(accelerator: str) -> int:
    return torch.cuda.device_count() if accelerator == "gpu" else 1


def _indices(requested: Any, available: int, accelerator: str, strategy: str) -> list[int]:
    if requested in ANY:
        return list(range(available if strategy != "single" else 1))
    if isinstance(requested, list):
        if accelerator == "cpu":
            raise UserError(f"trainer.devices={requested} numbers GPUs, but this run is on the CPU: give a number.")
        if not all(isinstance(index, int) for index in requested):
            raise UserError(f"trainer.devices={requested} is no list of whole numbers, as in [0,2].")
        return requested
    if not str(requested).removeprefix("-").isdecimal():
        raise UserError(f"trainer.devices={requested} is no whole number, list of them or 'auto'.")
    return list(range(int(requested)))
