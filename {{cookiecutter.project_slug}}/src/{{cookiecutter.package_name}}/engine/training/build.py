"""Builds the objects that the configuration names; none of them receives the configuration itself."""

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.strategies import ModelParallelStrategy

from .. import rendezvous
from ..config.command_line import Config
from ..config.habits import not_installed
from ..config.validation import build, parameters_of
from ..distributed.batch_norm import SyncedBatchNorm
from ..distributed.dealing import generators_seeded
from ..distributed.plan import BatchSplit, Plan, data_section
from ..distributed.strategies import DealingStrategy, build_strategy, leave_signals_alone
from ..errors import UserError
from .callbacks.micro_batch_finder import MicroBatchFinder
from .checkpoint_io import AtomicCheckpointIO
from .trackers import FaultTolerantLogger, prepared_section

# Parameters of mallopt(3), and what an older glibc takes at most for the second.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MOST_OF_OLDER = -1, -3, 2**25
# Of a callback, which Lightning calls in each step.
STEP_HOOKS = [name for name in dir(Callback) if re.match("on_(before|after)_|on_.*_batch_(start|end)$", name)]


def build_model(section: Mapping[str, Any], spec: Any) -> pl.LightningModule:
    """Builds the model, its network sized by `spec` if it takes one: the description of the data, or None."""
    taken = _parameters_of(section, "model")
    if "spec" in taken and spec is None:
        raise UserError(f"model._target_={section['_target_']} takes a spec, and the DataModule has none: set one.")
    model: pl.LightningModule = build(section, "model", **({"spec": spec} if "spec" in taken else {}))
    _require(model, pl.LightningModule, section, "model")
    return model


def build_datamodule(section: Config, seed: int, **given: Any) -> pl.LightningDataModule:
    """Builds the data; `given` is passed where the DataModule takes it.

    Its constructor and each `setup` run under generators that are seeded by `seed`, so that a split that is drawn there
    is the same on all ranks, and in an evaluation the one of the training.
    """
    taken = _parameters_of(section, "data")
    with generators_seeded(seed):
        known = {name: value for name, value in given.items() if name in taken}
        datamodule: pl.LightningDataModule = build(data_section(section), "data", **known)
    _require(datamodule, pl.LightningDataModule, section, "data")
    setup = datamodule.setup

    def seeded_setup(stage: str) -> None:
        with generators_seeded(seed):
            setup(stage)

    datamodule.setup = seeded_setup  # type: ignore[method-assign]
    return datamodule


def _parameters_of(section: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    if "_target_" not in section:  # `model=null` leaves what other groups set in the section
        raise UserError(f"'{path}' is needed: it cannot be left out.")
    return parameters_of(section["_target_"], path)


def _require(built: object, kind: type, section: Mapping[str, Any], path: str) -> None:
    if not isinstance(built, kind):
        raise UserError(f"{path}._target_={section['_target_']} is no {kind.__name__}: give the class of one.")


def build_loggers(sections: Mapping[str, Any] | None, run_dir: Path) -> list[Logger]:
    """Builds the loggers, each but the CSV file so that its failure does not end the run."""
    loggers: list[Logger] = []
    for name, given in (sections or {}).items():
        # An experiment may hold options for a tracker that is not chosen.
        section = prepared_section(name, given, run_dir) if given and "_target_" in given else None
        if section is None:
            continue
        try:
            logger: Logger = build(section, f"logger.{name}")
        except ModuleNotFoundError as error:
            raise not_installed(name) from error
        loggers.append(logger if isinstance(logger, CSVLogger) else FaultTolerantLogger(logger, name))
    return loggers


def build_callbacks(
    sections: Mapping[str, Any] | None, loggers: list[Logger], engine: list[Callback], split: BatchSplit | None = None
) -> list[Callback]:
    """Builds the callbacks that are not set to null, between those of the engine."""
    chosen = {name: section for name, section in (sections or {}).items() if section}
    for name, section in chosen.items():
        if section.get("save_weights_only"):
            raise UserError(f"callbacks.{name}.save_weights_only=true leaves out what evaluate and export need.")
    built = [build(section, f"callbacks.{name}") for name, section in chosen.items()]
    if not loggers:  # LearningRateMonitor refuses to start without one
        built = [callback for callback in built if not isinstance(callback, LearningRateMonitor)]
    if split is not None and split.is_auto:
        built.append(MicroBatchFinder(split))
    return [*engine, *built]


def build_trainer(
    plan: Plan, callbacks: list[Callback], loggers: list[Logger], run_dir: Path, model: pl.LightningModule | None = None
) -> pl.Trainer:
    """For a training of `model`, if one is given. With manual optimisation some parameters have no part in a step."""
    if not plan.trainer["enable_progress_bar"]:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if plan.devices.accelerator == "cpu":
        keep_freed_memory()
    strategy = build_strategy(plan.strategy, plan.devices, bool(model and not model.automatic_optimization))
    options, precision = dict(plan.trainer), []
    if isinstance(strategy, ModelParallelStrategy):
        options.setdefault("inference_mode", False)  # FSDP2 would train with what a first validation has gathered
        if options.get("precision") == "64-true":  # Lightning refuses the words, and takes what they stand for
            options["precision"], precision = None, [DoublePrecision()]
    trainer: pl.Trainer = build(
        options,
        "trainer",
        default_root_dir=run_dir,
        strategy=strategy,
        callbacks=callbacks,
        logger=loggers or False,
        # Lightning's own sampler pads, which counts samples twice.
        use_distributed_sampler=False,
        plugins=[
            _environment(),
            AtomicCheckpointIO(),
            *precision,
            *([SyncedBatchNorm()] if plan.trainer.get("sync_batchnorm") else []),
        ],
    )
    assert isinstance(trainer.strategy, DealingStrategy)
    trainer.strategy.batch_size = plan.split.batch_size if plan.split else None
    leave_out_empty_hooks(trainer.callbacks)  # type: ignore[attr-defined]
    # With `max_steps`, Lightning 2.6 takes a checkpoint from the end of an epoch for one from within it, and skips one.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    if trainer.world_size > 1:
        leave_signals_alone(trainer)
    return trainer


def keep_freed_memory() -> None:
    """Keeps the memory that a step has freed for the next one, which takes up to a third of the time off a step.

    glibc would give large blocks back to the system, which clears each of their pages when it hands them out anew.
    Settings of the environment (`MALLOC_...`, `GLIBC_TUNABLES`) come first.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *option: 1)  # musl, another libc, has none
    if not set_option(M_MMAP_THRESHOLD, 2**30):
        set_option(M_MMAP_THRESHOLD, MOST_OF_OLDER)
    set_option(M_TRIM_THRESHOLD, -1)


def leave_out_empty_hooks(callbacks: list[Callback]) -> None:
    """Keeps Lightning from calling what does nothing: each call opens a section of its profiler, in each step.

    Lightning does not call an attribute that is None.
    """
    for callback in callbacks:
        for hook in STEP_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)


def _environment() -> ClusterEnvironment:
    """Names the launcher, because Lightning takes any process in a SLURM job for one of several."""
    started = rendezvous.started()
    if started is None:
        return LightningEnvironment()
    # Lightning requeues a job by a checkpoint within a step; here the job's script requeues it.
    return SLURMEnvironment(auto_requeue=False) if started.starter == "srun" else TorchElasticEnvironment()
