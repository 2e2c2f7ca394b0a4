"""From configuration to objects; no configuration is passed on to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.profilers import PassThroughProfiler

from .callbacks.kept import LastFigures, RandomState, SelfContained
from .callbacks.micro_batch import LargestMicroBatch
from .checks import check
from .cli import Config
from .data.spec import DataSpec
from .hooks import Unprofiled, drop_empty_hooks
from .models.trainee import Trainee
from .refusal import Refusal, one_line
from .strategies import ranks
from .strategies.ddp import leave_signals_alone
from .strategies.devices import Devices
from .strategies.launch import build_strategy, trainer_section
from .strategies.samplers import BatchSplit
from .tracking import Steady, prepared
from .whole import WholeFiles


def build(section: Mapping[str, Any], path: str, **given: Any) -> Any:
    """The object that `section["_target_"]` names; `given` holds what only the code knows, such as the DataSpec.

    `path` is the section's place on the command line, for the sentence of a refusal.
    """
    check(section, path, known=given)
    try:
        # Passing `given` to Hydra would turn a dataclass into a configuration: a partial takes it as it is.
        return instantiate({**section, "_partial_": True}, _convert_="all")(**given)
    except (Refusal, ModuleNotFoundError):
        raise
    except InstantiationException as error:
        raise Refusal(f"{path} cannot be built: {one_line(error.__cause__ or error)}") from error
    except Exception as error:  # what a constructor raises for a value that it cannot use is up to its author
        raise Refusal(f"{path} cannot be built: {one_line(error)}") from error


def build_model(section: Mapping[str, Any], spec: DataSpec) -> Trainee:
    """The network sized by `spec`."""
    if "net" not in section:  # other groups may have left something of the section
        raise Refusal("'model' is needed: it cannot be left out.")
    model: Trainee = build(section, "model", spec=spec)
    drop_empty_hooks(model)
    return model


def build_trainee(section: Mapping[str, Any], spec: DataSpec, lr_factor: float) -> Trainee:
    """With a learning rate times `lr_factor`."""
    if lr_factor != 1:
        if "lr" not in section["optimizer"]:
            raise Refusal("lr_scaling needs a learning rate to scale: set model.optimizer.lr.")
        optimizer = {**section["optimizer"], "lr": section["optimizer"]["lr"] * lr_factor}
        section = {**section, "optimizer": optimizer}
    model = build_model(section, spec)
    getattr(model.net[1], "before_training", lambda: None)()  # of a network that begins with weights of elsewhere
    try_optimizer(model)
    return model


def try_optimizer(model: Trainee) -> None:
    """Once, so that a value that it or the scheduler does not take is refused before the run."""
    try:
        model.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise Refusal(f"model.optimizer or model.scheduler refuses a value: {one_line(error)}.") from error


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
            raise Refusal(
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
            raise Refusal(f"callbacks.{name}.save_weights_only=true leaves out what evaluate and export need.")
    built = [build(section, f"callbacks.{name}") for name, section in sections.items()]
    if not loggers:  # there is nowhere to write the learning rate, and the monitor refuses to start
        built = [callback for callback in built if not isinstance(callback, LearningRateMonitor)]
    if split is not None and config["data"].get("micro_batch_size") == "auto":
        built.append(LargestMicroBatch(split))
    callbacks = [*built, RandomState(), LastFigures(), SelfContained(contents)]
    for callback in callbacks:
        drop_empty_hooks(callback)
    return callbacks


def build_trainer(
    config: Config, devices: Devices, callbacks: list[Callback], loggers: list[Logger], num_steps: int = 1
) -> pl.Trainer:
    """`num_steps` is the number of micro-batches that a device makes of its part of a batch."""
    if not config["trainer"]["enable_progress_bar"]:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    trainer: pl.Trainer = build(
        trainer_section(config, devices, num_steps),
        "trainer",
        default_root_dir=config["paths"]["output_dir"],
        strategy=build_strategy(config["strategy"], devices),
        callbacks=callbacks,
        logger=loggers or False,
        # Lightning's own sampler pads, and would count samples twice.
        use_distributed_sampler=False,
        plugins=[_environment(), WholeFiles()],
    )
    if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
        trainer.profiler = Unprofiled()  # type: ignore[attr-defined]
    if trainer.world_size > 1:
        leave_signals_alone(trainer)
    return trainer


def _environment() -> ClusterEnvironment:
    """Who started the processes; left to itself Lightning takes any process of a SLURM job for one of several."""
    started = ranks.started()
    if started is None:
        return LightningEnvironment()
    # Its own way to requeue a job saves in the middle of a step; here the job's script does it.
    return SLURMEnvironment(auto_requeue=False) if started.starter == "srun" else TorchElasticEnvironment()
