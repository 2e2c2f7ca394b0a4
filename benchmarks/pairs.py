"""How much longer a command takes today than before a change: interleaved pairs, and the median of their ratios.

In an environment of the generated project, from an empty folder:

    python benchmarks/pairs.py <before>/src <today>/src --pairs 20 -- train --help
    python benchmarks/pairs.py <before>/src <today>/src --setup "train trainer=cpu trainer.max_epochs=2" -- export
    python benchmarks/pairs.py <before>/src <today>/src --epochs -- train trainer=cpu trainer.max_epochs=6

Both projects are generated with the same answers. The two take turns, each in a folder of its own, in which `--setup`
is run once and `artifacts/` is removed before each command. With `--epochs` it is the quickest epoch of a training that
is compared, the first one left out. The interval of 95 % is a bootstrap (Efron, 1979).
"""

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMED = "+callbacks.times._target_=digit_classifier.engine.training.callbacks.monitoring.EpochTimes"


def seconds_of(source: str, command: list[str], folder: Path, epochs: bool = False) -> float:
    environment = os.environ | {"PYTHONPATH": str(Path(source).resolve()), "OMP_NUM_THREADS": "1"}
    verb, *options = command
    if epochs:
        shutil.rmtree(folder / "run", ignore_errors=True)
        options += [TIMED, "hydra.run.dir=run"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"digit_classifier.{verb}", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"error: '{shlex.join(command)}' of {source} ended with exit code {done.returncode}: {done.stderr}")
    if epochs:
        return min(json.loads((folder / "run/epoch_times.json").read_text(encoding="utf-8"))["epoch_seconds"][1:])
    return seconds


def interval(ratios: list[float]) -> tuple[float, float]:
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[1949]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times a command of two projects in interleaved pairs.")
    parser.add_argument("before")
    parser.add_argument("today")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--setup", default="", help="a command that is run once in each folder")
    parser.add_argument("--epochs", action="store_true", help="compare the quickest epoch of a training")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    sources, ratios = (given.before, given.today), []
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("before", "today")]
        for source, folder in zip(sources, folders, strict=True):
            folder.mkdir()
            if given.setup:
                seconds_of(source, shlex.split(given.setup), folder)
        for number in range(given.pairs):
            seconds = [0.0, 0.0]
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                shutil.rmtree(folders[which] / "artifacts", ignore_errors=True)
                seconds[which] = seconds_of(sources[which], given.command, folders[which], given.epochs)
            ratios.append(seconds[1] / seconds[0])
            print(f"pair {number + 1} of {given.pairs}", file=sys.stderr, flush=True)
    low, high = interval(ratios)
    print(f"{shlex.join(given.command)}: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
