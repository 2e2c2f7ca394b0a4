"""`trainer.sync_batchnorm=true`: the statistics of BatchNorm come from the samples of all processes, on any device.

Those of micro-batches stay apart, so with them the result is not that of the whole batch.
"""

from typing import Any

import torch
from lightning.pytorch.plugins import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError

KINDS = "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct2d"  # the last one is timm's

_is_counted = True  # whether this process has samples of its own in the step


def count_samples(is_counted: bool) -> None:
    """Sets whether the samples of the step that begins count for the statistics."""
    global _is_counted
    _is_counted = is_counted


class _Sum(torch.autograd.Function):
    """The sum over all processes, of the values and of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0].contiguous())


class SyncBatchNorm(_BatchNorm):
    """Unlike torch's it works on the CPU too, and leaves out the samples of a process that has none of its own."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(x)
        x = self._normalized(x)
        for name in ("drop", "act"):  # of timm's BatchNormAct2d
            x = getattr(self, name, nn.Identity())(x)
        return x

    def _normalized(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call,unused-ignore]
        wide, shape = x.to(torch.promote_types(x.dtype, torch.float32)), [1, -1, *(1 for _ in x.shape[2:])]
        axes, num_own = [0, *range(2, x.dim())], x.numel() // x.shape[1]
        total: Tensor = _Sum.apply(torch.cat([wide.sum(axes), wide.new_tensor([num_own])]) * _is_counted)  # type: ignore[no-untyped-call,unused-ignore]
        mean, count = total[:-1] / total[-1], int(total[-1])
        if not count:  # an empty micro-batch: no process has samples of its own
            return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        centered = wide - mean.view(shape)
        var: Tensor = _Sum.apply(centered.square().sum(axes) * _is_counted) / count  # type: ignore[no-untyped-call,unused-ignore]
        self._track(mean.detach(), var.detach() * count / (count - 1))
        normalized: Tensor = centered * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(x.dtype)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


class SyncedBatchNorm(TorchSyncBatchNorm):
    """Lightning's plugin, which replaces the classes of layers and nothing else."""

    def __init__(self) -> None:
        self.originals: dict[nn.Module, type] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        for name, layer in model.named_modules():
            kind = type(layer)
            if isinstance(layer, _BatchNorm):
                if kind.__name__ not in KINDS:
                    raise UserError(
                        f"trainer.sync_batchnorm=true does not know {name}, a {kind.__name__}: leave it out."
                    )
                self.originals[layer] = kind
                layer.__class__ = type(f"Sync{kind.__name__}", (SyncBatchNorm, kind), {})
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for layer, kind in self.originals.items():
            layer.__class__ = kind
        self.originals = {}
        return model


def depends_on_split(model: nn.Module, num_devices: int, num_steps: int, is_synced: bool) -> str | None:
    """A sentence for a network whose BatchNorm makes the result depend on how a batch is split."""
    if not any(isinstance(layer, _BatchNorm) and layer.training for layer in model.modules()):
        return None
    if num_steps > 1:
        return "BatchNorm takes its statistics from each micro-batch alone, so the result depends on their number"
    if num_devices == 1 or is_synced:
        return None
    return "BatchNorm takes its statistics from each device alone: trainer.sync_batchnorm=true takes those of all"
