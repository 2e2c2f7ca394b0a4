"""A callback that kills its process, as a machine that is lost does, and notes at what it was."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class Killer(Callback):
    """`seconds` after the training began, on one rank, in the middle of whatever it does; or as its test begins."""

    def __init__(self, seconds: float, rank: int, notes: str, in_test: bool = False) -> None:
        self.seconds, self.rank, self.notes, self.in_test = seconds, rank, Path(notes), in_test

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_rank == self.rank and not self.in_test:
            threading.Thread(target=self._kill, args=(trainer,), daemon=True).start()

    def on_test_start(self, *args: Any) -> None:
        if self.in_test:
            os.kill(os.getpid(), signal.SIGKILL)

    def _kill(self, trainer: pl.Trainer) -> None:
        time.sleep(self.seconds)
        is_saving = any(Path(trainer.default_root_dir).glob("checkpoints/*.incoming"))
        phase = "saving" if is_saving else str(trainer.state.stage)
        with self.notes.open("a", encoding="utf-8") as file:
            print(phase, file=file)
        os.kill(os.getpid(), signal.SIGKILL)
