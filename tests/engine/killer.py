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
    """`delay` seconds after a step of the optimiser, on one rank, whatever it does then; or as the test begins.

    By steps, since a machine may train to the end in the seconds that another takes for its first epoch.
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
