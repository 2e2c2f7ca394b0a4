"""`strategy=ddp` and `strategy=fsdp` as Lightning strategies, for the processes that are already there."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError

Compression = Literal["none", "fp16", "bf16", "powersgd"]


@dataclass(frozen=True)
class Ddp:
    """The options of `configs/strategy/ddp.yaml`."""

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
        _check_least(self, bucket_cap_mb=1, powersgd_rank=1, powersgd_start_step=2, max_restarts=0)


@dataclass(frozen=True)
class Fsdp:
    """The options of `configs/strategy/fsdp.yaml`."""

    name: str
    min_num_weights: int
    cpu_offload: bool
    max_restarts: int

    def __post_init__(self) -> None:
        _check_least(self, min_num_weights=1, max_restarts=0)


def _check_least(options: object, **least_values: int) -> None:
    for name, least in least_values.items():
        if getattr(options, name) < least:
            raise UserError(f"strategy.{name}={getattr(options, name)} is out of range: give {least} or more.")


class DistributedDataParallelStrategy(DDPStrategy):
    """DistributedDataParallel, with gradients compressed on their way between the ranks where that is asked for.

    PowerSGD (Vogels et al., 2019, arXiv:1905.13727) sends a low-rank approximation and keeps what it left out for the
    next step; torch begins with it after `start_step` steps.
    """

    restore_checkpoint_after_setup = True  # before it, weights in double precision would pass through single

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
        # Not by Lightning's own option, which leaves the hook out on the CPU without a word.
        if self.compression == "fp16":
            self.model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif self.compression == "bf16":
            self.model.register_comm_hook(None, default_hooks.bf16_compress_hook)
        elif self.compression == "powersgd":
            self.model.register_comm_hook(self.powersgd(), powerSGD_hook)


def has_changing_buffers(model: nn.Module) -> bool:
    """Whether rank 0 must send its buffers to all in each step, as BatchNorm's."""
    return any(
        not getattr(part, "has_constant_buffers", False)
        for part in model.modules()
        for _ in part.buffers(recurse=False)
    )


class FullyShardedStrategy(FSDPStrategy):
    """Weights, gradients and optimizer state cut over the devices; a checkpoint holds the whole model, as always."""

    def __init__(self, min_num_weights: int, cpu_offload: bool) -> None:
        policy = partial(size_based_auto_wrap_policy, min_num_params=min_num_weights)
        super().__init__(auto_wrap_policy=policy, cpu_offload=cpu_offload, state_dict_type="full")


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Lightning's handler for SIGTERM waits for all ranks, and a rank alone would wait for ever.

    Signals end a rank at once instead, and with that no step has to ask the others whether they were signalled.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
