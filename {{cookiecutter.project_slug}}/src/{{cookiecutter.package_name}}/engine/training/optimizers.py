"""Which weights train, and how fast: freezing, groups of parameters, and schedules of the learning rate."""

import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from math import isclose
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau

from ..errors import UserError
from ..spec import DataSpec

FSDP_PREFIX = "_fsdp_wrapped_module."  # inserted by FSDP into the name of each weight


def freeze_named(model: nn.Module, patterns: str | list[str]) -> None:
    """Freezes the weights whose names match one of the patterns, as `net.1.features.*`."""
    weights = dict(model.named_parameters())
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = [name for name in weights if fnmatchcase(name, pattern)]
        if not fitting:
            raise UserError(f"model.freeze={pattern} fits no weight: there are {shortened(list(weights))}.")
        for name in fitting:
            weights[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in weights.values()):
        raise UserError(f"model.freeze={patterns} freezes every weight: leave out those that are to train.")


def hold_frozen(model: nn.Module) -> None:
    """Sets modules with no trainable weight to evaluation mode, so that BatchNorm keeps its running statistics."""
    for module in model.modules():
        is_trained = [weight.requires_grad for weight in module.parameters()]
        if is_trained and not any(is_trained):
            module.eval()


def shortened(names: list[str], most: int = 4) -> str:
    """The first names and the last one."""
    return ", ".join(names if len(names) <= most else [*names[: most - 1], "...", names[-1]])


def head_parameters(net: nn.Module, make_net: Callable[[DataSpec], nn.Module], spec: DataSpec) -> set[str]:
    """Names of the parameters whose shape depends on the number of labels.

    A second network with two more labels shows them, because neither a name nor a position does so for every network.
    It draws no random numbers of this process.
    """
    with torch.random.fork_rng(devices=[]):
        other = make_net(replace(spec, labels=(*spec.labels, "one more", "another"), label_counts=()))
    shapes = {name: weight.shape for name, weight in other.named_parameters()}
    return {name for name, weight in net.named_parameters() if shapes.get(name) != weight.shape}


def build_optimizer(
    make_optimizer: Callable[[Any], Optimizer],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    pretrained_names: Collection[str],
    pretrained_lr_factor: float,
) -> Optimizer:
    """Builds an optimizer with the groups `pretrained`, whose learning rate is multiplied by the factor, and `new`.

    Frozen weights are among them, so that a run can be continued with another `model.freeze`; an optimizer skips
    weights without a gradient.
    """
    if not pretrained_names:
        return make_optimizer([weight for _, weight in named_parameters])
    groups: dict[str, list[nn.Parameter]] = {"pretrained": [], "new": []}
    for name, weight in named_parameters:
        groups["pretrained" if name.replace(FSDP_PREFIX, "") in pretrained_names else "new"].append(weight)
    optimizer = make_optimizer([{"params": group, "name": name} for name, group in groups.items() if group])
    for group in optimizer.param_groups:  # not as an argument: an optimizer may have a default rate
        if group["name"] == "pretrained":
            group["lr"] = group["lr"] * pretrained_lr_factor
    return optimizer


def build_schedules(
    optimizer: Optimizer,
    make_scheduler: Callable[[Optimizer], LRScheduler] | None,
    warmup_steps: int,
    pretrained_lr_factor: float,
) -> list[Any]:
    """Builds the scheduler and the warm-up in the form that `configure_optimizers` returns."""
    schedules: list[Any] = []
    if make_scheduler is not None:
        scheduler = make_scheduler(optimizer)
        _check_rates(optimizer, pretrained_lr_factor)
        # Lightning omits a plateau's step in the epoch in which a run is resumed: `step_plateau_schedules` takes it.
        frequency = sys.maxsize if isinstance(scheduler, ReduceLROnPlateau) else 1
        schedules.append({"scheduler": scheduler, "monitor": "val/loss", "frequency": frequency})
    if warmup_steps:  # a factor that grows from step to step, on top of the scheduler's
        warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
        schedules.append({"scheduler": warmup, "interval": "step", "name": "warmup"})
    return schedules


def _check_rates(optimizer: Optimizer, pretrained_lr_factor: float) -> None:
    """Some schedulers, as OneCycleLR, set rates regardless of the groups."""
    rates = {group.get("name"): float(group["lr"]) for group in optimizer.param_groups}
    if pretrained_lr_factor == 1 or not {"pretrained", "new"} <= rates.keys():
        return
    if not isclose(rates["pretrained"], rates["new"] * pretrained_lr_factor, rel_tol=1e-6):
        raise UserError(
            f"model.scheduler sets learning rates of its own, over model.pretrained_lr_factor={pretrained_lr_factor}: "
            "give it a list of two, of the pretrained and of the new weights, or leave the factor at 1."
        )


def step_plateau_schedules(trainer: pl.Trainer, val_loss: float) -> None:
    """Steps every ReduceLROnPlateau after a validation, before the checkpoint of the epoch, which holds its state."""
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and not trainer.sanity_checking:
            config.scheduler.step(val_loss)  # type: ignore[arg-type]
