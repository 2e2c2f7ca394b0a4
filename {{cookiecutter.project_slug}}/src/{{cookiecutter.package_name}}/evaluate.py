"""Evaluate a checkpoint on the test split: metrics, plots and an error analysis.

python -m <package> evaluate
python -m <package> evaluate ckpt_path=logs/train/runs/<time>/checkpoints/best.ckpt
python -m <package> evaluate trainer=cpu strategy=ddp trainer.devices=2
"""

from __future__ import annotations

from pathlib import Path

if not __package__:
    raise SystemExit(f"error: start the module, not its file: python -m {Path(__file__).parent.name} evaluate")

from .engine import commands


@commands.command("evaluate", needs=("trainer", "strategy", "paths"))
def main(config: commands.Config) -> None:
    """Finds the checkpoint, and runs `run` on every device that the strategy uses."""
    commands.Evaluation.launch(run, config)


def run(config: commands.Config, plan: commands.Plan) -> dict[str, float]:
    """Evaluates in one process; each sample counts once, under every strategy."""
    evaluation = commands.Evaluation.build(config, plan)
    metrics: dict[str, float] = {}
    for figures in evaluation.trainer.test(evaluation.model, datamodule=evaluation.datamodule, verbose=False):
        metrics.update(figures)
    evaluation.report(metrics)
    return metrics


if __name__ == "__main__":
    main()
