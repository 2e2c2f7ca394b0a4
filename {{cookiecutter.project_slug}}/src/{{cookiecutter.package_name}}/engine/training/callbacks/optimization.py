"""Options that act on any LightningModule from outside: learning rates, warm-up, frozen weights and compilation."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from math import isclose
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR
from torchmetrics import Metric, MetricCollection

from ...distributed.strategies import DealingStrategy
from ...errors import UserError, one_line
from ..options import TrainOptions

log = logging.getLogger(__name__)


class Optimization(Callback):
    """Applies the options of `train` that act on any model: learning rates, `freeze`, `compile`, `sample_dropout` etc.

    `pretrained_names` are the parameters that were taken from `weights`; `lr_factor` multiplies every learning rate. It
    also steps each ReduceLROnPlateau that follows a figure of the validation right after it: Lightning does so after
    the checkpoint of the epoch, and omits the step where a run is resumed.
    """

    def __init__(self, options: TrainOptions, pretrained_names: frozenset[str], lr_factor: float) -> None:
        self.options, self.pretrained_names, self.lr_factor = options, pretrained_names, lr_factor
        self.rates: dict[Optimizer, list[float]] = {}  # of the groups of each optimizer, as the options say
        self.plateau_frequencies: dict[int, int] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, DealingStrategy):
            trainer.strategy.sample_dropout = self.options.sample_dropout
        if self.options.channels_last:  # before ddp lays out its buckets like the weights
            pl_module.to(memory_format=torch.channels_last)
        self.wrap(pl_module)

    def wrap(self, module: pl.LightningModule) -> None:
        """Lets the options act on what the module's `configure_optimizers` returns."""
        configure = module.configure_optimizers
        # Not by nn.Module's own __setattr__, and only while the run lasts.
        object.__setattr__(module, "configure_optimizers", lambda: self._configured(module, configure))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.__dict__.pop("configure_optimizers", None)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.options.compile:  # in place, which leaves the names of the weights as they are
            for child in pl_module.children():
                if not isinstance(child, Metric | MetricCollection) and any(True for _ in child.parameters()):
                    child.compile()
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._refuse_contradictions(pl_module, schedules)
        if trainer.is_global_zero and self.options.ckpt_path is None:
            log.info("            learning rate %s%s", self._described(trainer.optimizers), self.options.lr_rule)
        if num_steps := self.options.warmup_steps:
            for optimizer in trainer.optimizers:  # a factor on top of the module's own schedules
                warmup = LinearLR(optimizer, start_factor=1 / (num_steps + 1), total_iters=num_steps)
                trainer.strategy.lr_scheduler_configs.append(LRSchedulerConfig(warmup, interval="step", name="warmup"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.options.ckpt_path is not None:
            log.info("            learning rate %s now", self._described(trainer.optimizers))
        if self.options.freeze is not None:  # a network that freezes weights of its own sets their modules itself
            hold_frozen(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        logged = {result.meta.name for result in trainer._results.values()}  # type: ignore[union-attr]
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and config.interval == "epoch" and config.monitor in logged:
                frequency = self.plateau_frequencies.setdefault(id(config), config.frequency)
                config.frequency = sys.maxsize  # Lightning's own step never comes
                if (trainer.current_epoch + 1) % frequency == 0:
                    config.scheduler.step(trainer.callback_metrics[str(config.monitor)])  # type: ignore[arg-type]

    def _configured(self, module: pl.LightningModule, configure: Callable[[], Any]) -> Any:
        """Calls the module's own `configure_optimizers`, in which groups are split before a scheduler reads them."""
        pretrained = {id(weight) for name, weight in module.named_parameters() if name in self.pretrained_names}
        init = Optimizer.__init__

        def grouped_init(optimizer: Optimizer, params: Any, defaults: dict[str, Any]) -> None:
            groups = list(self._groups(params, defaults, pretrained))
            init(optimizer, groups, defaults)
            self.rates[optimizer] = [float(group["lr"]) for group in groups]

        changes_groups = bool(pretrained) or self.lr_factor != 1
        with refused_values(), patch.object(Optimizer, "__init__", grouped_init) if changes_groups else nullcontext():
            return configure()

    def _groups(self, params: Any, defaults: dict[str, Any], pretrained: set[int]) -> Iterator[dict[str, Any]]:
        given = list(params)
        for group in given if given and isinstance(given[0], dict) else [{"params": given}]:
            members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            members = [member[1] if isinstance(member, tuple) else member for member in members]
            rate: Any = group.get("lr", defaults.get("lr"))
            if rate is None:
                raise UserError("lr_scaling and pretrained_lr_factor need a learning rate: set model.optimizer.lr.")
            parts = {True: self.options.pretrained_lr_factor, False: 1.0} if pretrained else {False: 1.0}
            for is_pretrained, factor in parts.items():
                part = [weight for weight in members if (id(weight) in pretrained) == is_pretrained]
                name = {"name": "pretrained" if is_pretrained else "new"} if pretrained else {}
                if part:
                    yield {**group, "params": part, "lr": rate * self.lr_factor * factor, **name}

    def _refuse_contradictions(self, module: pl.LightningModule, schedules: list[Any]) -> None:
        """Some schedulers, as OneCycleLR, set rates regardless of those of the groups."""
        for optimizer, expected in self.rates.items():
            found = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
            ratios = [rate / right for rate, right in zip(found, expected, strict=True)]
            if not all(isclose(ratio, ratios[0] if self.lr_factor == 1 else 1, rel_tol=1e-6) for ratio in ratios):
                raise UserError(
                    "model.scheduler sets learning rates of its own, over pretrained_lr_factor="
                    f"{self.options.pretrained_lr_factor} and lr_scaling={self.options.lr_scaling}: give it a list of "
                    "two, of the pretrained and of the new weights, or leave these options at their defaults."
                )
        if not self.options.warmup_steps:
            return
        if not module.automatic_optimization:
            raise UserError("warmup_steps cannot go with manual optimisation, in which the module steps its schedules.")
        for scheduler in schedules:
            if not _is_relative(scheduler):
                raise UserError(
                    f"warmup_steps cannot go with {type(scheduler).__name__}, which sets the learning rate regardless "
                    "of others: leave warmup_steps at 0, or take a scheduler that multiplies the rate."
                )

    def _described(self, optimizers: list[Optimizer]) -> str:
        """The learning rates of what trains; `pretrained` and `new` where weights were taken from a file."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        training = [group for group in groups if any(weight.requires_grad for weight in group["params"])]
        rates = [(float(group["lr"]), f" ({group['name']})" if "name" in group else "") for group in training]
        return ", ".join(f"{rate:g}{name}" for rate, name in sorted(set(rates)))


@contextmanager
def refused_values() -> Iterator[None]:
    """Turns what torch says of a value of the optimizer or the scheduler into a sentence."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer or model.scheduler refuses a value: {one_line(error)}.") from error


def _is_relative(scheduler: Any) -> bool:
    """Whether the next rate follows from the present one, as torch's schedulers that can be chained compute it."""
    if not hasattr(scheduler, "get_lr"):
        return True
    groups = scheduler.optimizer.param_groups
    rates = [group["lr"] for group in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects `get_lr` to be called by `step`
        next_rates = [float(rate) for rate in scheduler.get_lr()]
        for group in groups:
            group["lr"] = group["lr"] / 2
        halved = [float(rate) for rate in scheduler.get_lr()]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    return all(isclose(2 * half, rate) for half, rate in zip(halved, next_rates, strict=True))


def freeze_named(model: nn.Module, patterns: str | list[str]) -> None:
    """Freezes the weights whose names match one of the patterns, as `net.1.features.*`."""
    weights = dict(model.named_parameters())
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = [name for name in weights if fnmatchcase(name, pattern)]
        if not fitting:
            raise UserError(f"freeze={pattern} fits no weight: there are {shortened(list(weights))}.")
        for name in fitting:
            weights[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in weights.values()):
        raise UserError(f"freeze={patterns} freezes every weight: leave out those that are to train.")


def hold_frozen(model: nn.Module) -> None:
    """Sets modules with no trainable weight to evaluation mode, so that BatchNorm keeps its running statistics."""
    for module in model.modules():
        is_trained = [weight.requires_grad for weight in module.parameters()]
        if is_trained and not any(is_trained):
            module.eval()


def shortened(names: list[str], most: int = 4) -> str:
    """The first names and the last one."""
    return ", ".join(names if len(names) <= most else [*names[: most - 1], "...", names[-1]])
