"""How long the commands of a project take to answer, beside importing Lightning.

In an environment of the generated project, from anywhere: python benchmarks/startup.py

Each is a process of its own; they take turns, and the fastest of each counts: what else runs on the machine only adds.
Like is measured beside like: what answers and ends beside a command that imports Lightning and ends, the first step,
where the run is cut off, beside imports that are cut off too. Taking an interpreter down is no part of a start.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from tables import at_most, print_table, say

NUM_ROUNDS = 7
TRAIN = ("-m", "digit_classifier", "train")
LIGHTNING = "import lightning.pytorch"
DATA = "from digit_classifier.data.digits import DigitsDataModule; DigitsDataModule()"
CUT_OFF = "import os; os._exit(0)"
CUT_OFF_AT_FIRST_STEP = "+callbacks.first._target_=startup.FirstStep"
FIRST_STEP = "train, to the first step"
NOT_REHEARSED = "the same with rehearse_export=false"
WAYS = {  # what is run, and the exit code that says that it came so far
    "an empty interpreter": (("-c", "pass"), 0),
    "import digit_classifier": (("-c", "import digit_classifier"), 0),
    LIGHTNING: (("-c", LIGHTNING), 0),
    "the same, cut off": (("-c", f"{LIGHTNING}; {CUT_OFF}"), 0),
    "with the data, cut off": (("-c", f"{LIGHTNING}; {DATA}; {CUT_OFF}"), 0),
    "train --help": ((*TRAIN, "--help"), 0),
    "train --cfg job": ((*TRAIN, "--cfg", "job"), 0),
    "a mistyped option": ((*TRAIN, "trainer.max_epoch=1"), 2),
    "a mistyped choice": ((*TRAIN, "model=cn"), 2),
    FIRST_STEP: ((*TRAIN, CUT_OFF_AT_FIRST_STEP), 7),
    NOT_REHEARSED: ((*TRAIN, CUT_OFF_AT_FIRST_STEP, "rehearse_export=false"), 7),
}
AS_TYPED = ("import digit_classifier", LIGHTNING, "train --help", "train --cfg job")
BOUNDS = dict.fromkeys(("train --help", "train --cfg job", "a mistyped option", "a mistyped choice"), 0.15)


class FirstStep(Callback):
    """Cuts a run off where its start-up ends."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, i: int) -> None:
        os._exit(7)  # an exit code that nothing else has


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(NUM_ROUNDS):
            for name, (words, exit_code) in WAYS.items():
                seconds[name].append(seconds_of(words, exit_code, scratch))
            say(f"round {number + 1} of {NUM_ROUNDS}")
    fastest = {name: min(of_way) for name, of_way in seconds.items()}
    lightning, rows = fastest[LIGHTNING], []
    for name, figure in fastest.items():
        ratio, bound = figure / lightning, BOUNDS.get(name)
        text = f"{ratio:.3f}" if bound is None else at_most(ratio, bound, f"{ratio:.3f}")
        rows.append([f"`{name}`" if name in AS_TYPED else name, f"{figure:.2f} s", text, bound or ""])
    package = fastest["import digit_classifier"] - fastest["an empty interpreter"]
    rows.append(
        ["the package without the interpreter", at_most(package, 0.05, f"{package * 1000:.0f} ms"), "", "50 ms"]
    )
    for name, which in ((FIRST_STEP, "the first step"), (NOT_REHEARSED, "the first step, no export rehearsed")):
        ratio = fastest[name] / fastest["with the data, cut off"]
        rows.append([f"{which}, beside Lightning with the data", at_most(ratio, 1.3, f"{ratio:.2f}"), "", 1.3])
    print_table(["process", "the fastest", "beside `import lightning.pytorch`", "bound"], rows)


def seconds_of(words: tuple[str, ...], exit_code: int, scratch: str) -> float:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    start = time.perf_counter()
    process = subprocess.run([sys.executable, *words], cwd=scratch, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if process.returncode != exit_code:
        sys.exit(f"error: {' '.join(words)} ended with {process.returncode}, not {exit_code}:\n{process.stderr}")
    return seconds


if __name__ == "__main__":
    main()
