"""Train a model, evaluate its best checkpoint on the test split and plot the curves.

    python -m <package>.train
    python -m <package>.train model=mlp trainer.max_epochs=5
    python -m <package>.train trainer=cpu strategy=ddp trainer.devices=2
    python -m <package>.train -m model.optimizer.lr=0.01,0.001

Torch and lightning are imported inside the functions: `--help` and a mistyped option are answered without them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .cli import Config, command, typed_but
from .refusal import Refusal
from .resume import with_resumed

if TYPE_CHECKING:
    import lightning.pytorch as pl


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/train.yaml`."""

    seed: int
    tags: list[str]
    resume: str | None
    ckpt_path: str | None
    lr_scaling: Literal["none", "linear", "sqrt"]
    base_batch_size: int
    rehearse_export: bool
    test: bool

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise Refusal(f"seed={self.seed} is out of range: give 0 to {2**32 - 1}.")
        if self.base_batch_size < 1:
            raise Refusal(f"base_batch_size={self.base_batch_size} holds no sample: give 1 or more.")

    def lr_factor(self, batch_size: int) -> float:
        """`linear` as in Goyal et al. (2017, arXiv:1706.02677), `sqrt` as in Krizhevsky (2014, arXiv:1404.5997)."""
        exponent = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[self.lr_scaling]
        return float((batch_size / self.base_batch_size) ** exponent)


@command("train", needs=("data", "model", "trainer", "strategy", "paths"), arguments=with_resumed)
def main(config: Config) -> None:
    from .record import kept

    with kept(Path(config["paths"]["output_dir"])):  # before the imports that take seconds
        from .checks import read_options
        from .strategies.launch import launch
        from .tuning import with_start

        read_options(config, Options)
        launch(run, {**with_start(config), "options": typed_but("resume")})


def run(config: Config) -> dict[str, float]:
    """One process of a run: builds what the configuration names, trains it and reports."""
    import lightning.pytorch as pl

    from .build import build, build_callbacks, build_loggers, build_trainee, build_trainer
    from .checkpoints import self_description
    from .checks import read_options
    from .guards import before_training
    from .reports import announce, keep_metrics, report_training
    from .strategies.launch import batch_split, devices_of
    from .tracking import tracked
    from .tuning import begin

    options, run_dir = read_options(config, Options), Path(config["paths"]["output_dir"])
    pl.seed_everything(options.seed, workers=True, verbose=False)
    devices = devices_of(config)
    split = batch_split(config["data"], devices)
    datamodule = build(config["data"], "data")
    model = build_trainee(config["model"], datamodule.spec, options.lr_factor(split.batch_size))
    before = begin(model, options.ckpt_path)
    loggers = build_loggers(config.get("logger"), run_dir)
    callbacks = build_callbacks(config, loggers, self_description(config, model), split)
    trainer = build_trainer(config, devices, callbacks, loggers, split.num_steps)
    if trainer.is_global_zero:
        announce(config, devices, split, model)
        before_training(config, datamodule, model, trainer)
        keep_metrics(run_dir / "metrics.csv", loggers, before)
    test = options.test and config["strategy"]["name"] != "fsdp"  # there each device has a part: `evaluate` tests it
    with tracked(loggers, config, run_dir):
        metrics = train(datamodule, model, trainer, options.ckpt_path, test=test)
    if trainer.is_global_zero:
        report_training(metrics, trainer, model, run_dir)
    return metrics


def train(
    datamodule: "pl.LightningDataModule",
    model: "pl.LightningModule",
    trainer: "pl.Trainer",
    ckpt_path: str | None = None,
    test: bool = True,
) -> dict[str, float]:
    """Fits, then tests the best checkpoint; returns every metric by its logged name, as `val/loss` or `test/acc`.

    `ckpt_path` goes on from that checkpoint: weights, optimizer, scheduler and epoch.
    """
    from .callbacks.kept import figures_of_training

    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    metrics = figures_of_training(trainer)
    if test:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        for figures in trainer.test(model, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False):
            metrics.update(figures)
    return metrics


if __name__ == "__main__":
    main()
