"""Evaluate a checkpoint on the test split: figures, `metrics.json` and a confusion matrix.

python -m <package>.evaluate
python -m <package>.evaluate ckpt_path=logs/train/runs/<time>/checkpoints/best.ckpt
python -m <package>.evaluate trainer=cpu strategy=ddp trainer.devices=2
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import Config, command
from .refusal import Refusal

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from .models.trainee import Trainee


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/evaluate.yaml`."""

    ckpt_path: str


@command("evaluate", needs=("trainer", "strategy", "paths"))
def main(config: Config) -> None:
    from . import checkpoints
    from .checks import read_options
    from .strategies.launch import launch

    path = checkpoints.find(read_options(config, Options).ckpt_path, Path(config["paths"]["log_dir"]))
    checkpoints.load(path)  # refuses a bad file before any process is started
    launch(run, {**config, "ckpt_path": str(path)})


def run(config: Config) -> dict[str, float]:
    """One process of an evaluation."""
    from . import checkpoints
    from .build import build_trainer
    from .progress import progress_bar
    from .reports import report_evaluation
    from .strategies.launch import devices_of, evaluation_steps

    checkpoint = checkpoints.load(Path(config["ckpt_path"]))
    model = checkpoint.model()
    datamodule = checkpoint.datamodule(config["data"])
    devices, data = devices_of(config), {**checkpoint.config["data"], **config["data"]}
    trainer = build_trainer(config, devices, [progress_bar()], loggers=[], num_steps=evaluation_steps(data, devices))
    metrics = evaluate(datamodule, model, trainer)
    if trainer.is_global_zero:
        report_evaluation(metrics, model, Path(config["paths"]["output_dir"]))
    return metrics


def evaluate(datamodule: pl.LightningDataModule, model: Trainee, trainer: pl.Trainer) -> dict[str, float]:
    """Metrics of the test split by their logged names; each sample counts once, under every strategy."""
    results = trainer.test(model, datamodule=datamodule, verbose=False)
    if not results:
        raise Refusal("trainer.limit_test_batches=0 leaves nothing to evaluate: leave it out.")
    return dict(results[0])


if __name__ == "__main__":
    main()
