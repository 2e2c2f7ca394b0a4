"""`strategy=dp`: DataParallel for Lightning 2, which dropped it."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

log = logging.getLogger(__name__)


class DataParallelStrategy(SingleDeviceStrategy):
    """One process; each batch is scattered over `devices`, the outputs are gathered on the first.

    DataParallel goes around the module's `forward` only: loss, metrics and logging happen once, on the first device.
    The module tree stays as it is, so checkpoints and exports know nothing of it.
    """

    def __init__(self, devices: list[torch.device]) -> None:
        super().__init__(device=devices[0])
        self.devices = devices

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        if len(self.devices) == 1:
            log.warning("strategy=dp has one device (%s) and changes nothing there.", self.devices[0])
            return
        assert self.lightning_module is not None
        replicated = nn.DataParallel(
            _ForwardOnly(self.lightning_module, self.precision_plugin), device_ids=[d.index for d in self.devices]
        )
        # Past nn.Module's own attribute hook: the module must not become a part of itself.
        object.__setattr__(self.lightning_module, "forward", replicated)

    def teardown(self) -> None:
        if self.lightning_module is not None:
            self.lightning_module.__dict__.pop("forward", None)
        super().teardown()


class _ForwardOnly(nn.Module):
    """Calls the class's own `forward` on the replica at hand, not the DataParallel that stands in its place."""

    def __init__(self, module: pl.LightningModule, precision: Precision) -> None:
        super().__init__()
        self.module = module
        self.precision = precision

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # A replica runs in a thread of its own, which does not inherit the dtype of the autocast around it.
        with self.precision.forward_context():
            return type(self.module).forward(self.module, *args, **kwargs)
