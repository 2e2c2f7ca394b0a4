"""From configuration to objects; no configuration is passed on to them."""

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
from ..config.command_line import Config
from ..config.instantiation import build
from ..distributed.plan import Plan, trainer_section
from ..distributed.samplers import BatchSplit
from ..distributed.strategies import build_strategy, leave_signals_alone
from ..errors import UserError, one_line
from ..spec import DataSpec
from .base_module import BaseModule
from .callbacks.checkpoint_contents import LastFigures, RandomState, SelfContained
from .callbacks.micro_batch_finder import LargestMicroBatch
from .checkpoint_io import AtomicCheckpointIO
from .trackers import Steady, prepared


def build_model(section: Mapping[str, Any], spec: DataSpec) -> BaseModule:
    """The network sized by `spec`."""
    if "net" not in section:  # other groups may have left something of the section
        raise UserError("'model' is needed: it cannot be left out.")
    model: BaseModule = build(section, "model", spec=spec)
    return model


def build_for_training(section: Mapping[str, Any], spec: DataSpec, lr_factor: float) -> BaseModule:
    """With a learning rate times `lr_factor`."""
    if lr_factor != 1:
        if "lr" not in section["optimizer"]:
            raise UserError("lr_scaling needs a learning rate to scale: set model.optimizer.lr.")
        optimizer = {**section["optimizer"], "lr": section["optimizer"]["lr"] * lr_factor}
        section = {**section, "optimizer": optimizer}
    model = build_model(section, spec)
    getattr(model.net[1], "before_training", lambda: None)()  # of a network that begins with weights of elsewhere
    try_optimizer(model)
    return model


def try_optimizer(model: BaseModule) -> None:
    """Once, so that a value that it or the scheduler does not take is refused before the run."""
    try:
        model.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer or model.scheduler refuses a value: {one_line(error)}.") from error


def build_loggers(sections: Mapping[str, Any] | None, run_dir: Path) -> list[Logger]:
    """What tracks runs elsewhere must not end one; `run_dir` knows their numbers of a run that goes on."""
    loggers: list[Logger] = []
    for name, given in (sections or {}).items():
        section = prepared(name, given, run_dir) if given else None
        if section is None:
            continue
        try:
            logger: Logger = build(section, f"logger.{name}")
            loggers.append(logger if isinstance(logger, CSVLogger) else Steady(logger, name))
        except ModuleNotFoundError as error:
            raise UserError(
                f"logger={name} is not installed: run 'pip install -c constraints.txt {name}', or take logger=csv."
            ) from error
    return loggers


def build_callbacks(
    config: Config, loggers: list[Logger], contents: dict[str, Any], split: BatchSplit | None = None
) -> list[Callback]:
    """Those of `configs/callbacks/`; an entry set to null is left out. `contents` goes into every checkpoint."""
    sections = {name: section for name, section in (config.get("callbacks") or {}).items() if section}
    for name, section in sections.items():
        if section.get("save_weights_only"):
            raise UserError(f"callbacks.{name}.save_weights_only=true leaves out what evaluate and export need.")
    built = [build(section, f"callbacks.{name}") for name, section in sections.items()]
    if not loggers:  # there is nowhere to write the learning rate, and the monitor refuses to start
        built = [callback for callback in built if not isinstance(callback, LearningRateMonitor)]
    if split is not None and config["data"].get("micro_batch_size") == "auto":
        built.append(LargestMicroBatch(split))
    return [*built, RandomState(), LastFigures(), SelfContained(contents)]


def build_trainer(
    config: Config, plan: Plan, callbacks: list[Callback], loggers: list[Logger], num_steps: int = 1
) -> pl.Trainer:
    """`num_steps` is the number of micro-batches that a device makes of its part of a batch."""
    if not config["trainer"]["enable_progress_bar"]:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    trainer: pl.Trainer = build(
        trainer_section(config, plan.devices, num_steps),
        "trainer",
        default_root_dir=config["paths"]["output_dir"],
        strategy=build_strategy(plan.strategy, plan.devices),
        callbacks=callbacks,
        logger=loggers or False,
        # Lightning's own sampler pads, and would count samples twice.
        use_distributed_sampler=False,
        plugins=[_environment(), AtomicCheckpointIO()],
    )
    if trainer.world_size > 1:
        leave_signals_alone(trainer)
    return trainer


def _environment() -> ClusterEnvironment:
    """Who started the processes; left to itself Lightning takes any process of a SLURM job for one of several."""
    started = rendezvous.started()
    if started is None:
        return LightningEnvironment()
    # Its own way to requeue a job saves in the middle of a step; here the job's script does it.
    return SLURMEnvironment(auto_requeue=False) if started.starter == "srun" else TorchElasticEnvironment()
