"""Which devices a run takes; everything that cannot work is refused here, before any process is started."""

from dataclasses import dataclass
from typing import Any

import torch

from ..refusal import Refusal


@dataclass(frozen=True)
class Devices:
    """`accelerator` is cpu, gpu or mps; `indices` number the devices, on the CPU the processes."""

    accelerator: str
    indices: tuple[int, ...]

    def to_torch(self) -> list[torch.device]:
        kind = {"cpu": "cpu", "gpu": "cuda", "mps": "mps"}[self.accelerator]
        return [torch.device(kind, index) for index in self.indices]

    def for_trainer(self) -> int | list[int]:
        return len(self.indices) if self.accelerator == "cpu" else list(self.indices)


def resolve_devices(accelerator: str, requested: int | str | list[int] | None, strategy: str) -> Devices:
    """`requested` is `trainer.devices`: a number, a list of indices, `auto` or null (what the strategy can use)."""
    accelerator = _resolve_accelerator(accelerator)
    available = _count(accelerator)
    indices = _indices(requested, available, accelerator, strategy)
    if not indices or len(set(indices)) != len(indices) or min(indices) < 0:
        raise Refusal(f"trainer.devices={requested} names no set of devices: give a number of 1 or more, or a list.")
    if accelerator != "cpu" and max(indices) >= available:
        raise Refusal(
            f"trainer.devices={requested} asks for more than this machine has ({available} {accelerator}): "
            f"give trainer.devices={available} or less."
        )
    if strategy == "single" and len(indices) > 1:
        raise Refusal(
            f"strategy=single uses one device, but trainer.devices={requested}: "
            "take strategy=ddp, or leave trainer.devices out."
        )
    if strategy == "dp" and accelerator != "gpu" and len(indices) > 1:
        raise Refusal(
            f"strategy=dp spreads a batch over GPUs, but trainer.devices={requested} on the {accelerator}: "
            "take strategy=ddp, which runs on CPU processes too."
        )
    return Devices(accelerator, tuple(indices))


def _resolve_accelerator(accelerator: str) -> str:
    has = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return next(name for name, present in has.items() if present)
    if accelerator == "cuda":
        accelerator = "gpu"
    if accelerator not in has:
        raise Refusal(f"trainer.accelerator={accelerator} is no option: choose one of: auto, {', '.join(has)}.")
    if not has[accelerator]:
        raise Refusal(
            f"trainer.accelerator={accelerator}, but this machine has none: take trainer=auto or trainer=cpu."
        )
    return accelerator


def _count(accelerator: str) -> int:
    return torch.cuda.device_count() if accelerator == "gpu" else 1


def _indices(requested: Any, available: int, accelerator: str, strategy: str) -> list[int]:
    if requested in (None, "auto", -1):
        return list(range(available if strategy != "single" else 1))
    if isinstance(requested, list):
        if accelerator == "cpu":
            raise Refusal(f"trainer.devices={requested} numbers GPUs, but this run is on the CPU: give a number.")
        if not all(isinstance(index, int) for index in requested):
            raise Refusal(f"trainer.devices={requested} is no list of whole numbers, as in [0,2].")
        return requested
    if not str(requested).removeprefix("-").isdecimal():
        raise Refusal(f"trainer.devices={requested} is no whole number, list of them or 'auto'.")
    return list(range(int(requested)))
