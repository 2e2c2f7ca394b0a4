"""Evaluates a checkpoint on the test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import lightning.pytorch as pl

from ..config.command_line import Config
from ..config.validation import read_options
from ..distributed.launch import launch
from ..distributed.plan import BatchSplit, Plan, trainer_section
from ..errors import UserError
from ..reporting.error_analysis import ErrorAnalysis
from ..reporting.run_report import report_evaluation
from ..runs.run_record import find_checkpoint
from ..training import checkpoints
from ..training.build import build_trainer
from ..training.callbacks.epoch_values import EpochValues
from ..training.callbacks.monitoring import progress_bar
from ..training.plots import MetricPlots


@dataclass(frozen=True)
class Options:
    """The plain options of `evaluate.yaml`."""

    ckpt_path: str


@dataclass(frozen=True)
class Evaluation:
    """What one process of an evaluation needs."""

    datamodule: pl.LightningDataModule
    model: pl.LightningModule
    trainer: pl.Trainer
    run_dir: Path

    @staticmethod
    def launch(run: Callable[[Config, Plan], dict[str, float]], config: Config) -> None:
        """Runs `run(config, plan)` on every device, once the checkpoint was found and can be read."""
        path = find_checkpoint(read_options(config, Options).ckpt_path, Path(config["paths"]["log_dir"]))
        checkpoints.load(path)
        launch(run, {**config, "ckpt_path": str(path)})

    @classmethod
    def build(cls, config: Config, plan: Plan) -> Evaluation:
        """Builds what the checkpoint's own configuration names, with the options of this command over it."""
        checkpoint = checkpoints.load(Path(config["ckpt_path"]))
        pl.seed_everything(checkpoint.config["seed"], workers=True, verbose=False)  # what the data draws, as in the run
        model = checkpoint.model()
        datamodule = checkpoint.datamodule(config["data"])
        data = {**checkpoint.config["data"], **config["data"]}
        split = BatchSplit.of(data, plan.devices.num_devices)
        plan = replace(plan, trainer=trainer_section(config, plan.devices, split.num_steps))
        run_dir = Path(config["paths"]["output_dir"])
        trainer = build_trainer(plan, [progress_bar(), MetricPlots(), EpochValues(), ErrorAnalysis()], [], run_dir)
        return cls(datamodule, model, trainer, run_dir)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Writes and prints the figures; raises `UserError` where nothing was evaluated."""
        if not metrics and not self.trainer.limit_test_batches:
            raise UserError("trainer.limit_test_batches=0 leaves nothing to evaluate: leave it out.")
        if self.trainer.is_global_zero:
            report_evaluation(dict(metrics), self.run_dir)
