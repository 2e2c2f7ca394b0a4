"""How long the commands of a project take to answer, beside importing Lightning.

In an environment of the generated project, from anywhere: python benchmarks/startup.py

Each is a process of its own; they take turns, and the fastest of each counts: what else runs on the machine only adds.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_ROUNDS = 7
TRAIN = ("-m", "digit_classifier.train")
LIGHTNING = "import lightning.pytorch"
WAYS = {
    "an empty interpreter": ("-c", "pass"),
    "import digit_classifier": ("-c", "import digit_classifier"),
    LIGHTNING: ("-c", LIGHTNING),
    "the same, and the data": (
        *("-c", f"{LIGHTNING}; from digit_classifier.data.digits import DigitsDataModule; DigitsDataModule()"),
    ),
    "train --help": (*TRAIN, "--help"),
    "train --cfg job": (*TRAIN, "--cfg", "job"),
    "a mistyped option": (*TRAIN, "trainer.max_epoch=1"),
    "a mistyped choice": (*TRAIN, "model=cn"),
    "train, to the first step": (*TRAIN, "+callbacks.first._target_=clock.FirstStep"),
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(NUM_ROUNDS):
            for name, words in WAYS.items():
                seconds[name].append(seconds_of(words, scratch))
            print(f"round {number + 1} of {NUM_ROUNDS}", file=sys.stderr, flush=True)
    fastest = {name: min(of_way) for name, of_way in seconds.items()}
    print(f"{'':25} {'fastest':>8} {'slowest':>8}   beside Lightning")
    for name, figure in fastest.items():
        print(f"{name:25} {figure:6.3f} s {max(seconds[name]):6.3f} s   {figure / fastest[LIGHTNING]:.3f}")
    package = fastest["import digit_classifier"] - fastest["an empty interpreter"]
    first_step = fastest["train, to the first step"] / fastest["the same, and the data"]
    print(f"the package alone {package * 1000:.0f} ms; the first step beside Lightning and the data {first_step:.2f}")


def seconds_of(words: tuple[str, ...], scratch: str) -> float:
    clock = Path(__file__).parent / "training"
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *words], cwd=scratch, env=os.environ | {"PYTHONPATH": str(clock)}, capture_output=True
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
