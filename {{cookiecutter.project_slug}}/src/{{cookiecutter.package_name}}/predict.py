"""Predict the labels of files such as those that were trained on, and of `.npy` arrays of raw samples.

python -m <package> predict input=data
python -m <package> predict input='data/*' output=answers.jsonl probabilities=true
python -m <package> predict input=samples.npy bundle=latest
python -m <package> predict input=[a.npy,b.npy] ckpt_path=logs/train/runs/<time>/checkpoints/best.ckpt
"""

from pathlib import Path

if not __package__:
    raise SystemExit(f"error: start the module, not its file: python -m {Path(__file__).parent.name} predict")

from .engine import commands


@commands.command("predict", needs=("paths",))
def main(config: commands.Config) -> None:
    """Reads the files, and writes what the model answers."""
    commands.predict_files(config)


if __name__ == "__main__":
    main()
