"""Trains a model: what is checked before, built in each process, recorded meanwhile and reported at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from ..config.command_line import Config, given_options_except
from ..config.validation import read_options
from ..distributed.launch import launch
from ..distributed.plan import Plan, make_plan
from ..errors import UserError
from ..reporting.run_report import announce, report_training, restore_metrics
from ..runs.run_record import locked_run
from ..training.build import build_callbacks, build_datamodule, build_loggers, build_model, build_trainer
from ..training.callbacks.checkpoint_contents import CheckpointContents, training_metrics
from ..training.callbacks.ema import EMA
from ..training.callbacks.epoch_values import EpochValues
from ..training.callbacks.monitoring import EpochSamples
from ..training.callbacks.optimization import Optimization
from ..training.callbacks.resumed_options import ResumedOptions
from ..training.checkpoints import Checkpoint, from_newest_checkpoint, self_description
from ..training.fine_tuning import load_starting_point, with_starting_point
from ..training.options import TrainOptions
from ..training.plots import MetricPlots
from ..training.preflight import before_training, check_hooks
from ..training.trackers import tracked


@dataclass(frozen=True)
class Training:
    """What one process of a training needs."""

    datamodule: pl.LightningDataModule
    model: pl.LightningModule
    spec: Any  # the description of the data, if the DataModule has one
    trainer: pl.Trainer
    run_dir: Path
    loggers: list[Logger]
    config: Config
    options: TrainOptions
    plan: Plan
    resumed_from: Checkpoint | None

    @staticmethod
    def launch(run: Callable[[Config, Plan], dict[str, float]], config: Config) -> None:
        """Runs `run(config, plan)` on every device; what cannot work is refused before any process is started."""
        with locked_run(Path(config["paths"]["output_dir"])):
            read_options(config, TrainOptions)
            for name in ("limit_train_batches", "max_epochs", "max_steps"):
                if config["trainer"].get(name) == 0:
                    raise UserError(f"trainer.{name}=0 leaves nothing to train: leave it out, or give another value.")
            launch(run, {**with_starting_point(config), "options": given_options_except("resume")})

    @classmethod
    def build(cls, config: Config, plan: Plan | None = None) -> Training:
        """Builds what the configuration names, the same on every rank; `launch` gives the plan."""
        plan = plan or make_plan(config)
        if config.get("restarts"):  # of the processes, after one of them was lost
            config = from_newest_checkpoint(config)
        assert plan.split is not None
        options, run_dir = read_options(config, TrainOptions), Path(config["paths"]["output_dir"])
        pl.seed_everything(options.seed, workers=True, verbose=False)
        datamodule = build_datamodule(config["data"], options.seed)
        spec = getattr(datamodule, "spec", None)
        model = build_model(config["model"], spec)
        resumed_from, pretrained, spec = load_starting_point(model, config["model"], spec, options)
        check_hooks(model, datamodule, plan, options.test)
        loggers = build_loggers(config.get("logger"), run_dir)
        optimization = Optimization(options, pretrained, options.lr_factor(plan.split.batch_size))
        engine: list[Callback] = [
            CheckpointContents(self_description(config, options, spec, pretrained)),
            *([ResumedOptions(resumed_from, config, options, optimization)] if resumed_from else []),
            optimization,
            EpochValues(resumed_from.followed if resumed_from else {}),
            MetricPlots(),
            EMA(options.ema_decay),
            EpochSamples(plan.split),
        ]
        callbacks = build_callbacks(config.get("callbacks"), loggers, engine, plan.split)
        trainer = build_trainer(plan, callbacks, loggers, run_dir, model)
        return cls(datamodule, model, spec, trainer, run_dir, loggers, config, options, plan, resumed_from)

    @property
    def ckpt_path(self) -> str | None:
        """The checkpoint from which a run goes on."""
        return self.options.ckpt_path

    @property
    def test(self) -> bool:
        """Whether the best checkpoint is tested at the end."""
        return self.options.test

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Says what is trained, tries what a long run would stumble over, and notes the run in its trackers."""
        if self.trainer.is_global_zero:
            from ..export.rehearsal import rehearse  # with it ONNX Runtime, which the other ranks need not load

            announce(self.plan, self.options, self.model)
            how = self.options.rehearse_export
            if how == "warn" and self.ckpt_path is not None:  # the run has said it at its start
                how = False
            rehearsal = partial(rehearse, how == "require", self.config["model"]) if how else None
            before_training(
                self.run_dir, self.ckpt_path, self.datamodule, self.spec, self.model, self.trainer, rehearsal
            )
            restore_metrics(self.run_dir / "metrics.csv", self.loggers, self.resumed_from)
        with tracked(self.loggers, self.config, self.run_dir):
            yield

    def metrics(self) -> dict[str, float]:
        """The figures of the last epoch by their logged names, such as `val/loss`."""
        return training_metrics(self.trainer)

    @property
    def best_checkpoint(self) -> str | None:
        """Of the weights with the best monitored figure; None where none was saved."""
        return getattr(self.trainer.checkpoint_callback, "best_model_path", "") or None

    def report(self, metrics: Mapping[str, float]) -> None:
        """Writes and prints the figures, the pictures and what to do next; the first rank alone."""
        if self.trainer.is_global_zero:
            report_training(dict(metrics), self.trainer, self.run_dir)
