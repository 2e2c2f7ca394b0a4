"""`strategy=dp`: DataParallel for Lightning 2, which dropped it."""

import logging
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

log = logging.getLogger(__name__)


class OneDeviceStrategy(SingleDeviceStrategy):
    """One device, one process."""

    restore_checkpoint_after_setup = True  # before it, weights in double precision would pass through single


class DataParallelStrategy(OneDeviceStrategy):
    """One process; each batch is scattered over `devices`, the outputs are gathered on the first.

    DataParallel goes around the module's `forward` only: loss, metrics and logging happen once, on the first device.
    The module tree stays as it is, so checkpoints and exports know nothing of it.
    """

    def __init__(self, devices: list[torch.device]) -> None:
        super().__init__(device=devices[0])
        self.devices = devices
        if len(devices) == 1:
            log.warning("strategy=dp has one device (%s) and changes nothing there.", devices[0])

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        if len(self.devices) == 1:
            return
        assert self.lightning_module is not None
        replicated = _Replicated(
            _ForwardOnly(self.lightning_module, self.root_device.type), [d.index for d in self.devices]
        )
        # Past nn.Module's own attribute hook: the module must not become a part of itself.
        object.__setattr__(self.lightning_module, "forward", replicated)

    def teardown(self) -> None:
        if self.lightning_module is not None:
            self.lightning_module.__dict__.pop("forward", None)
        super().teardown()


class _ForwardOnly(nn.Module):
    """Calls the class's own `forward` on the replica at hand, not the DataParallel that stands in its place."""

    def __init__(self, module: pl.LightningModule, device_type: str) -> None:
        super().__init__()
        self.module = module
        self.device_type = device_type

    def remember(self) -> None:
        """What a replica's thread does not inherit from the caller's; of the default dtype all threads have one."""
        kind = self.device_type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self.autocast = partial(torch.autocast, kind, dtype=dtype, enabled=enabled, cache_enabled=False)
        # Not inference_mode(False): that switches gradients on.
        self.inference = torch.inference_mode if torch.is_inference_mode_enabled() else nullcontext

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.autocast(), self.inference():
            return type(self.module).forward(self.module, *args, **kwargs)


class _Replicated(nn.DataParallel[_ForwardOnly]):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.module.remember()
        return super().forward(*args, **kwargs)
