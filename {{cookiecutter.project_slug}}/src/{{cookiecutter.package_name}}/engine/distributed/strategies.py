"""`strategy=single`, `dp`, `ddp` and `fsdp` as Lightning strategies, for the processes that are already there."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

from ..config.validation import read_options
from ..errors import UserError, nearest
from .devices import Devices

log = logging.getLogger(__name__)

Compression = Literal["none", "fp16", "bf16", "powersgd"]


@dataclass(frozen=True)
class OneProcess:
    """`strategy=single` and `strategy=dp` have no options."""

    name: str
    max_restarts = 0


@dataclass(frozen=True)
class Ddp:
    """The options of `strategy/ddp.yaml`."""

    name: str
    find_unused_parameters: bool
    gradient_as_bucket_view: bool
    static_graph: bool
    bucket_cap_mb: int
    compression: Compression
    powersgd_rank: int
    powersgd_start_step: int
    max_restarts: int

    def __post_init__(self) -> None:
        _check_minimum(self, bucket_cap_mb=1, powersgd_rank=1, powersgd_start_step=2, max_restarts=0)


@dataclass(frozen=True)
class Fsdp:
    """The options of `strategy/fsdp.yaml`."""

    name: str
    min_num_weights: int
    cpu_offload: bool
    max_restarts: int

    def __post_init__(self) -> None:
        _check_minimum(self, min_num_weights=1, max_restarts=0)


def _check_minimum(options: object, **minimums: int) -> None:
    for name, minimum in minimums.items():
        if getattr(options, name) < minimum:
            raise UserError(f"strategy.{name}={getattr(options, name)} is out of range: give {minimum} or more.")


StrategyOptions = OneProcess | Ddp | Fsdp
OPTIONS: dict[str, type] = {"single": OneProcess, "dp": OneProcess, "ddp": Ddp, "fsdp": Fsdp}


def strategy_options(section: Mapping[str, Any]) -> StrategyOptions:
    """The options of the strategy; refuses an unknown strategy, unknown options and wrong types."""
    name = section.get("name")
    if name not in OPTIONS:
        raise UserError(f"strategy.name={name} is no option; {nearest(str(name), OPTIONS)}")
    known = OPTIONS[name].__annotations__
    for key in section.keys() - known.keys():
        raise UserError(f"'strategy.{key}' is no option; {nearest(key, known, 'strategy')}")
    options: StrategyOptions = read_options(dict(section), OPTIONS[name], "strategy")
    return options


def build_strategy(options: StrategyOptions, devices: Devices) -> Strategy:
    """The Lightning strategy of a process."""
    if options.name == "dp":
        return DataParallelStrategy(devices.to_torch())
    if isinstance(options, OneProcess) or devices.num_devices == 1:
        return OneDeviceStrategy(devices.to_torch()[0])
    if isinstance(options, Fsdp):
        return FullyShardedStrategy(options.min_num_weights, options.cpu_offload)
    return DistributedDataParallelStrategy(
        options.compression,
        options.powersgd_rank,
        options.powersgd_start_step,
        find_unused_parameters=options.find_unused_parameters,
        gradient_as_bucket_view=options.gradient_as_bucket_view,
        static_graph=options.static_graph,
        bucket_cap_mb=options.bucket_cap_mb,
    )


class OneDeviceStrategy(SingleDeviceStrategy):
    """One device, one process."""

    restore_checkpoint_after_setup = True  # else weights in double precision would pass through single


class DataParallelStrategy(OneDeviceStrategy):
    """One process that scatters each batch over `devices` and gathers the outputs on the first.

    DataParallel wraps the module's `forward` only: loss, metrics and logging happen once, on the first device. The
    module tree stays as it is, so checkpoints and exports do not change.
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
        # Not by nn.Module's own __setattr__: the module must not become a part of itself.
        object.__setattr__(self.lightning_module, "forward", replicated)

    def teardown(self) -> None:
        if self.lightning_module is not None:
            self.lightning_module.__dict__.pop("forward", None)
        super().teardown()


class _ForwardOnly(nn.Module):
    """Calls the `forward` of the module's class on a replica, not the DataParallel that replaces it on the instance."""

    def __init__(self, module: pl.LightningModule, device_type: str) -> None:
        super().__init__()
        self.module = module
        self.device_type = device_type

    def capture_context(self) -> None:
        """Captures autocast and inference mode, which the thread of a replica does not inherit from its caller."""
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
        self.module.capture_context()
        return super().forward(*args, **kwargs)


class DistributedDataParallelStrategy(DDPStrategy):
    """DistributedDataParallel, with optional compression of the gradients that the ranks exchange.

    PowerSGD (Vogels et al., 2019, arXiv:1905.13727) sends a low-rank approximation and adds its error to the gradient
    of the next step; it begins after `start_step` steps.
    """

    restore_checkpoint_after_setup = True  # else weights in double precision would pass through single

    def __init__(self, compression: Compression, powersgd_rank: int, start_step: int, **options: Any) -> None:
        super().__init__(**options)
        self.compression = compression
        self.powersgd = partial(
            PowerSGDState, process_group=None, matrix_approximation_rank=powersgd_rank, start_powerSGD_iter=start_step
        )

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.broadcast_buffers = has_changing_buffers(self.model)
        # Not by Lightning's own option, which silently leaves the hook out on the CPU.
        if self.compression == "fp16":
            self.model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif self.compression == "bf16":
            self.model.register_comm_hook(None, default_hooks.bf16_compress_hook)
        elif self.compression == "powersgd":
            self.model.register_comm_hook(self.powersgd(), powerSGD_hook)


def has_changing_buffers(model: nn.Module) -> bool:
    """Whether rank 0 must send its buffers to the other ranks in each step, such as those of BatchNorm."""
    return any(
        not getattr(part, "has_constant_buffers", False)
        for part in model.modules()
        for _ in part.buffers(recurse=False)
    )


class FullyShardedStrategy(FSDPStrategy):
    """Shards weights, gradients and optimizer state over the devices; a checkpoint holds the full model."""

    def __init__(self, min_num_weights: int, cpu_offload: bool) -> None:
        policy = partial(size_based_auto_wrap_policy, min_num_params=min_num_weights)
        super().__init__(auto_wrap_policy=policy, cpu_offload=cpu_offload, state_dict_type="full")


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Removes Lightning's handler for SIGTERM, which waits for all ranks: a rank that is signalled alone would hang.

    The callback `LastCheckpoint` handles signals instead. Both attributes are private in Lightning 2.6.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
