"""What the strategy changes of a result: `single` beside `ddp` on two processes, the whole default training.

In an environment of a generated project, from anywhere: python benchmarks/strategies.py

In float64 the weights are compared after the last epoch, and the figures of the test; in float32 the accuracies of five
seeds, with the seconds that `single` takes from start to end.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tables import MISSED, at_least, at_most, print_table, say

SEEDS = range(1, 6)
WAYS = {"single": [], "ddp": ["strategy=ddp", "trainer.devices=2"]}
TOLERANCE = 1e-10


class Result(NamedTuple):
    weights: dict[str, torch.Tensor]
    figures: dict[str, float]
    seconds: float


def main() -> None:
    exact = {name: trained([*options, "trainer.precision=64-true"]) for name, options in WAYS.items()}
    single, ddp = exact["single"], exact["ddp"]
    drift = max((single.weights[name] - weight).abs().max().item() for name, weight in ddp.weights.items())
    same = all(abs(single.figures[name] - figure) < TOLERANCE for name, figure in ddp.figures.items())
    rows = [
        ["float64, largest difference of a weight", at_most(drift, TOLERANCE, f"{drift:.1e}"), f"{TOLERANCE:.0e}"],
        ["float64, figures of the test", "equal" if same else f"not equal {MISSED}", "equal"],
    ]
    by_seed = []
    for seed in SEEDS:
        by_seed.append({name: trained([*options, f"seed={seed}"]) for name, options in WAYS.items()})
        say(f"seed {seed} of {len(SEEDS)}")
    for name in WAYS:
        accuracies = [results[name].figures["test/acc"] for results in by_seed]
        mean = sum(accuracies) / len(accuracies)
        text = f"{', '.join(f'{accuracy:.4f}' for accuracy in accuracies)} (mean {mean:.4f})"
        is_held = mean >= 0.98 and min(accuracies) >= 0.97
        bound = "mean 0.98, none under 0.97"
        rows.append([f"float32, test accuracy of `{name}`, seeds 1 to 5", at_least(is_held, 1, text), bound])
    seconds = [results["single"].seconds for results in by_seed]
    text = at_most(max(seconds), 60, f"{min(seconds):.1f} to {max(seconds):.1f} s")
    rows.append(["one such run of `single`, start to end", text, "60 s"])
    print_table(["the default training", "measured", "bound"], rows)


def trained(options: list[str]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "digit_classifier", "train", "trainer=cpu", *options]
        start = time.perf_counter()
        subprocess.run([*command, f"paths.output_dir={folder}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        state = torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True)["state_dict"]
        metrics = json.loads(Path(folder, "metrics.json").read_text(encoding="utf-8"))
        figures = {name: value for name, value in metrics.items() if name.startswith("test/")}
    return Result({name: weight.double() for name, weight in state.items()}, figures, seconds)


if __name__ == "__main__":
    main()
