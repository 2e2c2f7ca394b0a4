"""What is timed in the process of a template: its epochs, and when its first step begins."""

import json
import os
import time
from pathlib import Path

import lightning.pytorch as pl
from digit_classifier.data.spec import DataSpec
from digit_classifier.models.mlp import MLP
from lightning.pytorch.callbacks import Callback


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


class FirstStep(Callback):
    """Ends the process at the first step: what it took until then is its start-up."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, i: int) -> None:
        os._exit(0)


def tiny_network() -> MLP:
    """That of `model=mlp "model.net.widths=[64,128,64]" model.net.dropout=0`, for pictures `(N, 1, 28, 28)`."""
    spec = DataSpec(
        name="pictures",
        task="classification",
        input_shape=(1, 28, 28),
        input_dtype="uint8",
        input_range=(0.0, 255.0),
        labels=tuple(str(number) for number in range(10)),
        mean=(0.5,),
        std=(0.25,),
    )
    return MLP(spec, [64, 128, 64], 0.0)
