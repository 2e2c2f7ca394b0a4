"""Callbacks that end a run from outside: as a machine that is lost does, and as a terminal or a scheduler does."""

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


class Signaller(Callback):
    """After an optimiser step: Ctrl-C to all processes of the terminal, SIGTERM to the command that was started."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if not trainer.is_global_zero or trainer.global_step != self.step:
            return
        if self.number == signal.SIGINT:
            os.killpg(os.getpgrp(), self.number)
        else:
            os.kill(os.getppid() if trainer.world_size > 1 else os.getpid(), self.number)
