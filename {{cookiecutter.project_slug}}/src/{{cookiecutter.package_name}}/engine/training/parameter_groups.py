"""Which weights train, and how fast: those that are frozen, those that were kept, and those that the labels shape."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from math import isclose
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import UserError
from ..spec import DataSpec

WRAPPED = "_fsdp_wrapped_module."  # what fsdp puts into the name of each weight


def freeze_named(model: nn.Module, patterns: str | list[str]) -> None:
    """Those that a pattern of names fits do not train, as `net.1.features.*`."""
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
    """Modules of which all weights are frozen go into evaluation mode, so that BatchNorm keeps its running figures."""
    for module in model.modules():
        training = [weight.requires_grad for weight in module.parameters()]
        if training and not any(training):
            module.eval()


def shortened(names: list[str], most: int = 4) -> str:
    """The first of them, and the last."""
    return ", ".join(names if len(names) <= most else [*names[: most - 1], "...", names[-1]])


def shaped_by_labels(net: nn.Module, make_net: Callable[[DataSpec], nn.Module], spec: DataSpec) -> set[str]:
    """Names of the parameters whose shape would differ with two labels more: the last layer, wherever it is.

    Told by a second network, because no name and no place says so for all networks; it draws no random numbers of
    this process.
    """
    with torch.random.fork_rng(devices=[]):
        other = make_net(replace(spec, labels=(*spec.labels, "one more", "another"), label_counts=()))
    shapes = {name: weight.shape for name, weight in other.named_parameters()}
    return {name for name, weight in net.named_parameters() if shapes.get(name) != weight.shape}


def grouped(
    make_optimizer: Callable[[Any], Optimizer],
    weights: Iterable[tuple[str, nn.Parameter]],
    kept: Collection[str],
    pretrained_lr_factor: float,
) -> Optimizer:
    """Of two groups of weights: `kept`, whose learning rate is times the factor, and `new`.

    Frozen ones are among them, so that a run can go on with another `model.freeze`; they have no gradient, and an
    optimizer passes them by.
    """
    groups: dict[str, list[nn.Parameter]] = {"kept": [], "new": []}
    for name, weight in weights:
        groups["kept" if name.replace(WRAPPED, "") in kept else "new"].append(weight)
    optimizer = make_optimizer([{"params": group, "name": name} for name, group in groups.items() if group])
    for group in optimizer.param_groups:  # not as an argument: an optimizer may have a rate by default
        if group["name"] == "kept":
            group["lr"] = group["lr"] * pretrained_lr_factor
    return optimizer


def check_rates(optimizer: Optimizer, pretrained_lr_factor: float) -> None:
    """After the scheduler was built: some, as OneCycleLR, set rates and know nothing of the groups."""
    rates = {group.get("name"): float(group["lr"]) for group in optimizer.param_groups}
    if pretrained_lr_factor == 1 or not {"kept", "new"} <= rates.keys():
        return
    if not isclose(rates["kept"], rates["new"] * pretrained_lr_factor, rel_tol=1e-6):
        raise UserError(
            f"model.scheduler sets learning rates of its own, over model.pretrained_lr_factor={pretrained_lr_factor}: "
            "give it a list of two, of the kept and of the new weights, or leave the factor at 1."
        )
