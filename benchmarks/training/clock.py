"""Times the epochs of any template, on a network that all of them train."""

import json
import time
from pathlib import Path

import lightning.pytorch as pl
from digit_classifier.models.mlp import MLP
from lightning.pytorch.callbacks import Callback
from pictures import PicturesDataModule


class Clock(Callback):
    """Writes the seconds of each epoch but the last, from its beginning to that of the next one: all it does counts."""

    def __init__(self, file: str) -> None:
        self.file, self.seconds = Path(file), []
        self.start = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.perf_counter()
        if self.start is not None:
            self.seconds.append(now - self.start)
            self.file.write_text(json.dumps(self.seconds), encoding="utf-8")
        self.start = now


def tiny_network() -> MLP:
    """That of `model=mlp "model.net.widths=[64,128,64]" model.net.dropout=0`, for pictures `(N, 1, 28, 28)`."""
    return MLP(PicturesDataModule(num_samples=100, num_val=10).spec, [64, 128, 64], 0.0)
