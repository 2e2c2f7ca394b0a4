"""Train a model, then test its best checkpoint and plot the curves.

    python -m <package> train
    python -m <package> train model=mlp trainer.max_epochs=5
    python -m <package> train trainer=cpu strategy=ddp trainer.devices=2
    python -m <package> train -m model.optimizer.lr=0.01,0.001

`commands` imports torch and lightning when they are needed: `--help` and a mistyped option are answered without them.
"""

from __future__ import annotations

from pathlib import Path

if not __package__:
    raise SystemExit(f"error: start the module, not its file: python -m {Path(__file__).parent.name} train")

from .engine import commands


@commands.command("train", needs=("data", "model", "trainer", "strategy", "paths"), resumes=True)
def main(config: commands.Config) -> None:
    """Composes the configuration once, and runs `run` on every device that the strategy uses."""
    commands.Training.launch(run, config)


def run(config: commands.Config, plan: commands.Plan) -> dict[str, float]:
    """Trains in one process; returns every figure by its logged name, such as `val/loss` or `test/acc`."""
    training = commands.Training.build(config, plan)
    trainer, model, datamodule = training.trainer, training.model, training.datamodule
    with training.recorded():
        trainer.fit(model, datamodule=datamodule, ckpt_path=training.ckpt_path, weights_only=True)
        metrics = training.metrics()
        if training.test:
            best = training.best_checkpoint
            for figures in trainer.test(model, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False):
                metrics.update(figures)
    training.report(metrics)
    return metrics


if __name__ == "__main__":
    main()
