"""An epoch over pictures on disk, decoded and changed at random, beside the same epoch with the data already decoded.

In an environment of the generated project, from anywhere: python benchmarks/decoding.py --workers 1 2

Each case is `train` in a process of its own; they take turns, an epoch each. The pictures are photographs in size
and grain: JPEG files of 160 x 120 pixels, resized to 64 x 64.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from digit_classifier.engine import SamplesInMemory
from digit_classifier.engine.data.image_folder import ImageFolderDataModule
from PIL import Image
from tables import at_least, print_table, say, spread
from training import Contestant

NUM_ROUNDS = 6
BOUND = 0.9  # with as many workers as it takes
NUM_LABELS, NUM_OF_EACH = 10, 200


class DecodedDataModule(ImageFolderDataModule):
    """The same pictures, decoded before the training begins and held in memory, without augmentation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"augment": None, "num_workers": 0})
        for split, samples in self.samples.items():
            self.samples[split] = SamplesInMemory(*samples.__getitems__(list(range(len(samples)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of worker processes to try")
    parser.add_argument("options", nargs="*", help="of train, as model.net.widths=[64,128,128]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        root = write_pictures(Path(scratch, "pictures"))
        ways = {"decoded already": ["data._target_=decoding.DecodedDataModule"]}
        ways |= {f"on disk, workers: {number}": [f"data.num_workers={number}"] for number in given.workers}
        shared = ["data=image_folder", "trainer=cpu", f"data.root={root}", f"paths.cache_dir={scratch}/cache"]
        cases = {}
        for name, options in ways.items():
            cases[name] = stack.enter_context(Contestant([*shared, *options, *given.options], num_epochs=1))
            cases[name].turn()
        seconds = {name: [] for name in cases}
        waited = {name: [] for name in cases}
        for number in range(NUM_ROUNDS):
            say(f"round {number + 1} of {NUM_ROUNDS}")
            for name, case in cases.items():
                figures = case.turn()
                seconds[name].append(figures["seconds"])
                waited[name].append(figures["waited"])
    decoded = seconds["decoded already"]
    ratios = {name: [there / own for own, there in zip(seconds[name], decoded, strict=True)] for name in cases}
    best = max(float(np.median(ratios[name])) for name in cases if name != "decoded already")
    rows = [
        [name, f"{min(seconds[name]):.2f} s", spread(ratios[name]), f"{np.median(waited[name]):.2f} s"]
        for name in cases
    ]
    rows[-1][2] = at_least(best, BOUND, rows[-1][2])
    head = ["pictures", "the fastest epoch", f"speed beside decoded pictures; bound {BOUND} with enough workers"]
    print_table([*head, "waiting for data"], rows)


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
