"""Epochs of the most used template (ashleve/lightning-hydra-template) beside a project's and a loop by hand.

In an environment with what both need (make session NAME=peers), and a clone of the other template:

git clone https://github.com/ashleve/lightning-hydra-template build/peers/clone
git -C build/peers/clone checkout bddbc24
build/peers/lightning-hydra-template/bin/python benchmarks/peer.py build/peers/clone

All three train the same small network on as many pictures of noise, 28 x 28, in batches of 128, with validation and the
same figures; the two templates also with checkpoints, progress bar and csv logger. They take turns as processes, and
the fastest epoch of each counts. The other template reads MNIST's files, so its pictures are written in that form; what
it does with them is its own code.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from digit_classifier.engine.distributed.launch import launch
from digit_classifier.engine.distributed.plan import Plan
from digit_classifier.models.mlp import MLP
from lightning.pytorch.callbacks import Callback
from tables import print_table, say
from training import PICTURES, TINY, HandWrittenLoop, PicturesDataModule, compose_train, measured_environment

NUM_TRAIN, NUM_VAL, NUM_TEST, BATCH_SIZE = 55_000, 5_000, 10_000, 128
TITLES = {
    "by hand": "a loop by hand",
    "ours": "a project of this template",
    "theirs": "lightning-hydra-template, commit bddbc24",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="that are timed, in each round")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"by hand": [], "ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_mnist(scratch / "MNIST/raw")
        for number in range(options.rounds):
            for name in seconds if number % 2 else reversed(seconds):
                seconds[name] += epochs_of(command(name, options, scratch), scratch)
                say(f"round {number + 1}, {name:>8}: epochs of {seconds[name][-1]:.2f} s")
    num_steps, by_hand = -(-NUM_TRAIN // BATCH_SIZE), min(seconds["by hand"])
    rows = [
        [TITLES[name], f"{num_steps / min(each):,.0f}", f"{by_hand / min(each):.2f}", f"{max(each):.2f} s"]
        for name, each in seconds.items()
    ]
    print_table(["", "steps a second", "beside the loop", "slowest epoch"], rows)


def write_mnist(folder: Path) -> None:
    """Noise in the four files of MNIST, in the format of its page: sizes as big-endian numbers, then bytes."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, number in (("train", 60_000), ("t10k", NUM_TRAIN + NUM_VAL + NUM_TEST - 60_000)):
        pixels = random.integers(256, size=(number, 28, 28), dtype=np.uint8)
        labels = pixels.reshape(number, -1)[:, :10].argmax(axis=1).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, number, 28, 28) + pixels.tobytes()
        )
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, number) + labels.tobytes())


def command(name: str, options: argparse.Namespace, scratch: Path) -> list[str]:
    """Trains one epoch more than is timed, because an epoch ends where the next one begins."""
    num_epochs, times = options.epochs + 1, scratch / "seconds.json"
    if name != "theirs":
        function = {"by hand": "train_by_hand", "ours": "train_ours"}[name]
        return [sys.executable, "-c", f"import peer; peer.{function}({str(times)!r}, {num_epochs})"]
    return [
        *(sys.executable, str(options.clone.resolve() / "src/train.py")),
        f"trainer.max_epochs={num_epochs}",
        "trainer=cpu",
        "logger=csv",
        f"data.batch_size={BATCH_SIZE}",
        f"data.data_dir={scratch}",
        f"data.train_val_test_split=[{NUM_TRAIN},{NUM_VAL},{NUM_TEST}]",
        f"paths.log_dir={scratch}",
        "~model.net",
        "+model.net._target_=peer.tiny_network",
        "+callbacks.clock._target_=peer.Clock",
        f"+callbacks.clock.file={times}",
        "test=false",  # theirs fails there: it does not load the checkpoint that it wrote
    ]


def our_config(num_epochs: int) -> dict:
    sizes = [f"data.num_samples={NUM_TRAIN}", f"data.num_val={NUM_VAL}", f"data.batch_size={BATCH_SIZE}"]
    run = [f"trainer.max_epochs={num_epochs}", "trainer=cpu", "logger=csv", "test=false", "paths.output_dir=."]
    return compose_train([*PICTURES, *sizes, *TINY, *run])


def train_ours(file: str, num_epochs: int) -> None:
    config = our_config(num_epochs)
    clock = {"_target_": "peer.Clock", "file": file}
    launch(run_ours, {**config, "callbacks": {**config["callbacks"], "clock": clock}})


def run_ours(config: dict, plan: Plan) -> None:
    from digit_classifier import train

    train.run(config, plan)


def train_by_hand(file: str, num_epochs: int) -> None:
    loop, clock = HandWrittenLoop(our_config(num_epochs)), Clock(file)
    for epoch in range(num_epochs):
        clock.tick()
        loop.epoch(epoch)


class Clock(Callback):
    """Writes the seconds of each epoch but the last: an epoch lasts until the next one begins."""

    def __init__(self, file: str) -> None:
        self.file, self.starts = Path(file), []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.tick()

    def tick(self) -> None:
        self.starts.append(time.perf_counter())
        self.file.write_text(json.dumps(np.diff(self.starts).tolist()), encoding="utf-8")


def tiny_network() -> MLP:
    """Returns the network of `TINY` for pictures `(N, 1, 28, 28)`."""
    spec = PicturesDataModule(num_samples=128, num_val=10, side=28, batch_size=128, seed=42).spec
    return MLP(spec, [64, 128, 64], 0.0)


def epochs_of(words: list[str], scratch: Path) -> list[float]:
    process = subprocess.run(
        words, cwd=scratch, env=measured_environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if process.returncode:
        sys.exit(f"error: {' '.join(words)} failed:\n{process.stdout}")
    times = scratch / "seconds.json"
    seconds: list[float] = json.loads(times.read_text(encoding="utf-8"))
    times.unlink()
    return seconds


if __name__ == "__main__":
    main()
