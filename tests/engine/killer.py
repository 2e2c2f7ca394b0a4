"""Callbacks that end a run: by SIGKILL, as a lost machine does, or by the signals of a terminal or a scheduler."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class Killer(Callback):
    """Kills one rank `delay` seconds after an optimiser step, whatever it does then, or at the start of the test.

    The moment is given as a step, because machines differ in the seconds that an epoch takes.
    """

    def __init__(self, rank: int, notes: str, step: int = 0, delay: float = 0, in_test: bool = False) -> None:
        self.rank, self.notes, self.step, self.delay, self.in_test = rank, Path(notes), step, delay, in_test
        self.is_due = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.in_test or self.is_due or trainer.global_rank != self.rank or trainer.global_step < self.step:
            return
        self.is_due = True
        threading.Thread(target=self._kill, args=(trainer,), daemon=True).start()

    def on_test_start(self, *args: Any) -> None:
        if self.in_test:
            os.kill(os.getpid(), signal.SIGKILL)

    def _kill(self, trainer: pl.Trainer) -> None:
        time.sleep(self.delay)
        is_saving = any(Path(trainer.default_root_dir).glob("checkpoints/*.incoming"))
        phase = "saving" if is_saving else str(trainer.state.stage)
        with self.notes.open("a", encoding="utf-8") as file:
            print(phase, file=file)
        os.kill(os.getpid(), signal.SIGKILL)


class Signaller(Callback):
    """Sends, after an optimiser step, Ctrl-C to all processes of the terminal or SIGTERM to the started command."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if not trainer.is_global_zero or trainer.global_step != self.step:
            return
        if self.number == signal.SIGINT:
            os.killpg(os.getpgrp(), self.number)
        else:
            os.kill(os.getppid() if trainer.world_size > 1 else os.getpid(), self.number)
