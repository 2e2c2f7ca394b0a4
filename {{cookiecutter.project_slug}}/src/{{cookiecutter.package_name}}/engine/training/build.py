"""Builds the objects that the configuration names; none of them receives the configuration itself."""

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

from .. import rendezvous
from ..config.validation import build
from ..distributed.plan import Plan
from ..distributed.samplers import BatchSplit
from ..distributed.strategies import build_strategy, leave_signals_alone
from ..errors import UserError, one_line
from ..spec import DataSpec
from .base_module import BaseModule
from .callbacks.checkpoint_contents import CheckpointContents
from .callbacks.micro_batch_finder import MicroBatchFinder
from .checkpoint_io import AtomicCheckpointIO
from .trackers import FaultTolerantLogger, prepared_section


def build_model(section: Mapping[str, Any], spec: DataSpec) -> BaseModule:
    """Builds the model, its network sized by `spec`."""
    if "net" not in section:  # `model=null` leaves what other groups set in the section
        raise UserError("'model' is needed: it cannot be left out.")
    model: BaseModule = build(section, "model", spec=spec)
    return model


def build_for_training(section: Mapping[str, Any], spec: DataSpec, lr_factor: float) -> BaseModule:
    """Builds a model whose learning rate is multiplied by `lr_factor`, with the first weights of its network."""
    if lr_factor != 1:
        if "lr" not in section["optimizer"]:
            raise UserError("lr_scaling needs a learning rate to scale: set model.optimizer.lr.")
        optimizer = {**section["optimizer"], "lr": section["optimizer"]["lr"] * lr_factor}
        section = {**section, "optimizer": optimizer}
    model = build_model(section, spec)
    getattr(model.net[1], "before_training", lambda: None)()  # loads pretrained weights, as `TimmNet`
    check_optimizer(model)
    return model


def check_optimizer(model: BaseModule) -> None:
    """Builds the optimizer and the scheduler once, so that a value that they refuse is reported before the run."""
    try:
        model.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer or model.scheduler refuses a value: {one_line(error)}.") from error


def build_loggers(sections: Mapping[str, Any] | None, run_dir: Path) -> list[Logger]:
    """Builds the loggers, each but the CSV file so that its failure does not end the run."""
    loggers: list[Logger] = []
    for name, given in (sections or {}).items():
        section = prepared_section(name, given, run_dir) if given else None
        if section is None:
            continue
        try:
            logger: Logger = build(section, f"logger.{name}")
        except ModuleNotFoundError as error:
            raise UserError(
                f"logger={name} is not installed: run 'pip install -c constraints.txt {name}', or take logger=csv."
            ) from error
        loggers.append(logger if isinstance(logger, CSVLogger) else FaultTolerantLogger(logger, name))
    return loggers


def build_callbacks(
    sections: Mapping[str, Any] | None, loggers: list[Logger], contents: dict[str, Any], split: BatchSplit | None = None
) -> list[Callback]:
    """Builds the callbacks that are not set to null, and the engine's own; every checkpoint receives `contents`."""
    chosen = {name: section for name, section in (sections or {}).items() if section}
    for name, section in chosen.items():
        if section.get("save_weights_only"):
            raise UserError(f"callbacks.{name}.save_weights_only=true leaves out what evaluate and export need.")
    built = [build(section, f"callbacks.{name}") for name, section in chosen.items()]
    if not loggers:  # LearningRateMonitor refuses to start without one
        built = [callback for callback in built if not isinstance(callback, LearningRateMonitor)]
    if split is not None and split.is_auto:
        built.append(MicroBatchFinder(split))
    return [*built, CheckpointContents(contents)]


def build_trainer(plan: Plan, callbacks: list[Callback], loggers: list[Logger], run_dir: Path) -> pl.Trainer:
    if not plan.trainer["enable_progress_bar"]:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    trainer: pl.Trainer = build(
        plan.trainer,
        "trainer",
        default_root_dir=run_dir,
        strategy=build_strategy(plan.strategy, plan.devices),
        callbacks=callbacks,
        logger=loggers or False,
        # Lightning's own sampler pads, which counts samples twice.
        use_distributed_sampler=False,
        plugins=[_environment(), AtomicCheckpointIO()],
    )
    if trainer.world_size > 1:
        leave_signals_alone(trainer)
    return trainer


def _environment() -> ClusterEnvironment:
    """Names the launcher, because Lightning takes any process in a SLURM job for one of several."""
    started = rendezvous.started()
    if started is None:
        return LightningEnvironment()
    # Lightning requeues a job by a checkpoint within a step; here the job's script requeues it.
    return SLURMEnvironment(auto_requeue=False) if started.starter == "srun" else TorchElasticEnvironment()
