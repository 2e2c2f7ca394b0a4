"""An epoch over pictures on disk, decoded and changed at random, beside the same epoch with the data already decoded.

In an environment of the generated project, from anywhere: python benchmarks/decoding.py --workers 1 2

Each case is `train` in a process of its own; they take turns, a whole epoch each. The pictures are photographs in size
and grain: JPEG files of 160 x 120 pixels, resized to 64 x 64.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from digit_classifier.engine.benchmark.turns import Case
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image

NUM_ROUNDS = 6
NUM_LABELS, NUM_OF_EACH = 10, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of worker processes to try")
    parser.add_argument("options", nargs="*", help="of train, as model.net.widths=[64,128,128]")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "training")  # of the processes that are measured
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        root = write_pictures(Path(scratch, "pictures"))
        ways = {"decoded already": ["data._target_=decoded.DecodedDataModule"]}
        ways |= {f"on disk, workers: {number}": [f"data.num_workers={number}"] for number in given.workers}
        cases = {}
        for name, options in ways.items():
            folder = Path(scratch, f"run{len(cases)}")
            folder.mkdir()
            config = config_of(
                [
                    f"data.root={root}",
                    f"paths.cache_dir={scratch}/cache",
                    f"paths.output_dir={folder}",
                    *options,
                    *given.options,
                ]
            )
            cases[name] = stack.enter_context(
                Case(config, 1, num_epochs=1, train_batches=1.0, val_batches=1.0, by_hand=False)
            )
            cases[name].start()
            cases[name].turn()
        seconds = {name: [] for name in cases}
        waited = {name: [] for name in cases}
        for _ in range(NUM_ROUNDS):
            for name, case in cases.items():
                figures = case.turn()
                seconds[name].append(figures["seconds"])
                waited[name].append(figures["waited"])
    fastest = min(seconds["decoded already"])
    print(
        f"{'':20} {'fastest':>9} {'median':>9} {'waited':>9}   speed beside decoded data: fastest (range of the rounds)"
    )
    for name, of_case in seconds.items():
        ratios = [there / here for here, there in zip(of_case, seconds["decoded already"], strict=True)]
        print(
            f"{name:20} {min(of_case):7.2f} s {np.median(of_case):7.2f} s {np.median(waited[name]):7.2f} s   "
            f"{fastest / min(of_case):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def config_of(options: list[str]) -> dict:
    """Of `train`, without an end of its own."""
    with initialize_config_module("digit_classifier.configs", version_base="1.3"):
        words = ["data=image_folder", "trainer=cpu", "trainer.max_epochs=-1", "callbacks.early_stopping=null", *options]
        config = compose("train", words)
    return OmegaConf.to_container(config, resolve=True)


def write_pictures(root: Path) -> Path:
    """A smooth background, a bright bar whose angle is the label, and noise."""
    random = np.random.default_rng(0)
    down, right = np.mgrid[-1:1:120j, -1:1:160j]
    for label in range(NUM_LABELS):
        (root / f"angle {label}").mkdir(parents=True)
        angle = np.pi * label / NUM_LABELS
        for number in range(NUM_OF_EACH):
            colour, place = random.uniform(40, 160, (1, 1, 3)), random.uniform(-0.3, 0.3)
            bar = np.exp(-(((down - place) * np.cos(angle) + (right - place) * np.sin(angle)) ** 2) / 0.02)
            pixels = colour + 60 * down[..., None] + 90 * bar[..., None] + random.normal(0, 12, (120, 160, 3))
            file = root / f"angle {label}" / f"{number:03}.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return root


if __name__ == "__main__":
    main()
