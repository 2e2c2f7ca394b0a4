"""Options that differ from those of the checkpoint from which a training goes on: applied, or refused by name."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_object
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, PolynomialLR

from ...config.command_line import Config
from ...distributed.plan import BatchSplit
from ...errors import UserError
from ..build import build_model
from ..checkpoints import SPLIT_OPTIONS, Checkpoint
from ..options import TrainOptions
from .optimization import Optimization

RATES = ("lr", "_last_lr")  # which move while a model trains
# What ends a schedule, and what its rate would do after the end.
ENDS: dict[type, tuple[str, str]] = {
    OneCycleLR: ("total_steps", "has no rate"),
    CosineAnnealingLR: ("T_max", "rises again"),
    PolynomialLR: ("total_iters", "stays at 0"),
}
# Of a ModelCheckpoint, whose best figure Lightning forgets where one of them changes.
OF_BEST = ("mode", "every_n_epochs", "every_n_train_steps", "train_time_interval")
ANOTHER_RUN = "or start another run with weights=<checkpoint>"


@dataclass(frozen=True)
class Configured:
    """What `configure_optimizers` returned, before a step: kinds, groups without their weights, states of schedules."""

    kinds: list[str]
    groups: list[list[dict[str, Any]]]
    schedules: list[dict[str, Any]]

    @classmethod
    def of(cls, optimizers: list[Optimizer], schedulers: list[Any]) -> "Configured":
        groups = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        kinds = [type(each).__name__ for each in (*optimizers, *schedulers)]
        return cls(kinds, groups, [dict(scheduler.state_dict()) for scheduler in schedulers])


class ResumedOptions(Callback):
    """Brings the options of this run into the state of a checkpoint, `before`, which Lightning loads as it was.

    To see what an option changes, `configure_optimizers` is called for the options of the checkpoint and for those of
    this run. What is the same throughout a training, such as a weight decay, is set; learning rates are multiplied by
    the ratio of the new and the old one, so that they go on in their schedule. Where its end has moved, they are those
    of a schedule that had this end from its start.
    """

    def __init__(self, before: Checkpoint, config: Config, options: TrainOptions, optimization: Optimization) -> None:
        self.before, self.config, self.options, self.optimization = before, config, options, optimization
        self.changed = [
            f"{section}.{name}"
            for section, then in (("model", before.config["model"]), ("callbacks", before.callbacks))
            for name in differences(then, config.get(section) or {})
        ]
        self.as_built: list[tuple[Callback, str, Any]] = []  # changed options of callbacks, before states are loaded
        self.with_other_end: list[int] = []  # schedules
        self.old: Configured | None = None
        self.new: Configured | None = None
        _refuse(before, config, options, self.changed)

    @property
    def changes_optimizers(self) -> bool:
        scaling = ("lr_scaling", "base_batch_size", "pretrained_lr_factor")
        is_scaled = any(getattr(self.options, name) != getattr(self.before.options, name) for name in scaling)
        return is_scaled or self.optimization.lr_factor != self._old_factor or _names("model.", self.changed) != []

    @property
    def _old_factor(self) -> float:
        return self.before.options.lr_factor(BatchSplit.of(self.before.config["data"], 1).batch_size)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before Lightning loads the states of callbacks and optimizers, and before a warm-up lowers the rates."""
        for path in _names("callbacks.", self.changed):
            _, name, option, *_ = [*path.split("."), ""]
            section = (self.config.get("callbacks") or {}).get(name) or {}
            for callback in trainer.callbacks if option in section else ():  # type: ignore[attr-defined]
                if type(callback) is get_object(section["_target_"]) and option in vars(callback):
                    self.as_built.append((callback, option, getattr(callback, option)))
        if not self.changes_optimizers:
            return
        self.new = Configured.of(trainer.optimizers, [config.scheduler for config in trainer.lr_scheduler_configs])
        with isolate_rng():
            module = self._module_before()
        module.trainer = trainer
        then = Optimization(self.before.options, self.before.pretrained_names, self._old_factor)
        then.wrap(module)
        optimizers, configs = _init_optimizers_and_lr_schedulers(module)  # private in Lightning 2.6
        self.old = Configured.of(optimizers, [config.scheduler for config in configs])
        of_model = _names("model.", self.changed)
        without_effect = [name for name in of_model if self.old == self.new and _is_of_optimizer(name, self.config)]
        if self.old.kinds != self.new.kinds or without_effect:
            raise UserError(
                f"{[*without_effect, *of_model][0]} cannot change in a training that goes on with "
                f"{', '.join(self.old.kinds)}: leave it as it was, {ANOTHER_RUN}."
            )

    def _module_before(self) -> pl.LightningModule:
        """The module as the options of the checkpoint describe it, for its optimizers alone."""
        section, spec = self.before.config["model"], self.before.spec
        try:
            with torch.device("meta"):  # which takes no memory
                return build_model(section, spec)
        except (UserError, NotImplementedError, RuntimeError):  # a constructor that reads values of its tensors
            return build_model(section, spec)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Changes what Lightning is about to load."""
        if self.old is None or self.new is None:
            return
        name = _names("model.", self.changed)[:1] or ["lr_scaling"]
        for state, old, new in zip(checkpoint["optimizer_states"], self.old.groups, self.new.groups, strict=False):
            for saved, then, now in zip(state["param_groups"], old, new, strict=False):
                bring_in(saved, then, now, name[0])
        schedules = zip(checkpoint["lr_schedulers"], self.old.schedules, self.new.schedules, strict=False)
        for number, (saved, then, now) in enumerate(schedules):
            bring_in(saved, then, now, name[0])
            if any(then.get(end) != now.get(end) for end, _ in ENDS.values()):
                self.with_other_end.append(number)
        self.old = self.new = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets what the state of a callback has brought back, and refuses a training beyond the end of a schedule."""
        for callback, option, value in self.as_built:
            setattr(callback, option, value)
        for number in self.with_other_end:
            follow_closed_form(trainer, trainer.lr_scheduler_configs[number])
        for config in trainer.lr_scheduler_configs:
            for scheduler in _with_inner(config.scheduler):
                self._refuse_beyond_end(trainer, config, scheduler)

    def _refuse_beyond_end(self, trainer: pl.Trainer, config: LRSchedulerConfig, scheduler: Any) -> None:
        end, after = next((found for kind, found in ENDS.items() if isinstance(scheduler, kind)), ("", ""))
        if not end:
            return
        last, limits = int(getattr(scheduler, end)), (trainer.max_epochs or -1, trainer.max_steps)
        before, now = (num_steps(trainer, config, *each) for each in (self.before.limits, limits))
        if before <= last < now:
            name = "max_epochs" if limits[0] != self.before.limits[0] else "max_steps"
            raise UserError(
                f"trainer.{name}={getattr(trainer, name)} goes beyond {type(scheduler).__name__}, whose rate {after} "
                f"after {last} steps: give another model.scheduler.{end} too."
            )


def num_steps(trainer: pl.Trainer, config: LRSchedulerConfig, max_epochs: int, max_steps: int) -> float:
    """How often a schedule is stepped in a training with these limits, of which -1 is none."""
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    epochs = max_epochs if max_epochs >= 0 else math.inf
    steps = min(max_steps if max_steps >= 0 else math.inf, epochs * per_epoch)
    return (steps if config.interval == "step" else min(epochs, steps / per_epoch)) / config.frequency


def follow_closed_form(trainer: pl.Trainer, config: LRSchedulerConfig) -> None:
    """Sets the rates of a schedule by its number of steps alone: torch computes each from the one before.

    The factor of a warm-up stays. Refuses an optimizer with other schedules, whose factors nobody knows apart.
    """
    scheduler: Any = config.scheduler
    others: list[Any] = [
        each for each in trainer.lr_scheduler_configs if each.scheduler.optimizer is scheduler.optimizer
    ]
    if any(each is not config and each.name != "warmup" for each in others):
        raise UserError("model.scheduler cannot end at another step beside a second schedule of the same optimizer.")
    if not hasattr(scheduler, "_get_closed_form_lr"):  # OneCycleLR computes each rate anew
        return
    factor = math.prod(
        each.scheduler._get_closed_form_lr()[0] / each.scheduler.base_lrs[0] for each in others if each is not config
    )
    rates = [rate * factor for rate in scheduler._get_closed_form_lr()]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _with_inner(scheduler: Any) -> Iterator[Any]:
    """A schedule and those that it is made of, as of a SequentialLR."""
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _with_inner(inner)


def _refuse(before: Checkpoint, config: Config, options: TrainOptions, changed: list[str]) -> None:
    """Refuses what no state can be changed for."""
    data, trained_on = config["data"], before.config["data"]
    for name in SPLIT_OPTIONS if data.get("_target_") == trained_on.get("_target_") else ():
        if data.get(name) != trained_on.get(name):
            raise UserError(
                f"data.{name}={data.get(name)} would move samples from the test to the training of a model that goes "
                f"on: leave it at {trained_on.get(name)}, {ANOTHER_RUN}."
            )
    then, is_over = before.options.warmup_steps, before.step >= before.options.warmup_steps
    if options.warmup_steps != then and (options.warmup_steps or not is_over):
        raise UserError(
            f"warmup_steps={options.warmup_steps} is for the start of a training, and this one goes on: leave it at "
            f"{then}, {ANOTHER_RUN}."
        )
    for path in changed:
        _, name, option = [*path.split("."), "", ""][:3]
        section = (config.get("callbacks") or {}).get(name) or {}
        if path.startswith("callbacks.") and option in section and option in OF_BEST:
            raise UserError(
                f"{path} cannot change in a training that goes on, whose best figure is known: {ANOTHER_RUN}."
            )


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The dotted names of the values that are others in `new`, or not there."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if old != new:
            yield path.lstrip(".")
        return
    for name in {**old, **new}:
        yield from differences(old.get(name), new.get(name), f"{path}.{name}")


def _names(prefix: str, changed: list[str]) -> list[str]:
    return [name for name in changed if name.startswith(prefix)]


def _is_of_optimizer(path: str, config: Config) -> bool:
    """Whether a section around the value names an optimizer or a schedule."""
    section: Any = config
    for name in path.split(".")[:-1]:
        section = (section or {}).get(name)
        target = section.get("_target_") if isinstance(section, Mapping) else None
        kind = get_object(target) if target is not None else None
        if isinstance(kind, type) and issubclass(kind, Optimizer | LRScheduler):
            return True
    return False


def bring_in(saved: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], option: str) -> None:
    """Changes in the state `saved` of a training what differs between its state at the start, `old`, and `new`."""
    for name in new:
        then, now, value = old.get(name), new[name], saved.get(name)
        if then == now:
            continue
        if name in RATES:
            saved[name] = _scaled(value, then, now, option)
        elif value == then:
            saved[name] = now
        else:
            raise UserError(
                f"{option} cannot change in a training that goes on: '{name}' of the optimizer or its schedule has "
                f"moved since the start. Leave it as it was, {ANOTHER_RUN}."
            )


def _scaled(value: Any, then: Any, now: Any, option: str) -> Any:
    if isinstance(value, list):
        return [_scaled(*each, option) for each in zip(value, then, now, strict=True)]
    if not then:
        raise UserError(f"{option} cannot change a learning rate that was 0: start another run.")
    return value * (now / then)
