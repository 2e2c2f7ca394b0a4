"""In the process of a trial: tells the search how the trial stands, and ends it when the search says so."""

from pathlib import Path

import lightning.pytorch as pl
import optuna
import torch
from lightning.pytorch.callbacks import Callback
from optuna.pruners import NopPruner

from ..config.instantiation import build
from ..errors import nearest
from .storage import open_study, usable_storage
from .study import PRUNED, SETTINGS, UNLOGGED


class Report(Callback):
    """After each validation, from the first rank; all ranks hear the answer."""

    def __init__(self, folder: str, trial_id: int) -> None:
        self.folder, self.trial_id = Path(folder), trial_id
        self.num_validations = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            with usable_storage(self.folder):
                study = open_study(self.folder)
            settings = study.user_attrs[SETTINGS]
            study.pruner = build(settings["pruner"], "search.pruner") if settings["pruner"] else NopPruner()
            self.monitor = settings["monitor"]
            self.trial = optuna.Trial(study, self.trial_id)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.num_validations += 1
        stop = trainer.is_global_zero and self._stops(trainer.callback_metrics)
        trainer.should_stop = trainer.strategy.broadcast(stop) or trainer.should_stop

    def _stops(self, figures: dict[str, torch.Tensor]) -> bool:
        with usable_storage(self.folder):
            if self.monitor not in figures:
                known = [name for name in figures if name.startswith("val/")]
                self.trial.set_user_attr(UNLOGGED, f"'{self.monitor}' is never logged; {nearest(self.monitor, known)}")
                return True
            self.trial.report(float(figures[self.monitor]), self.num_validations - 1)
            if not self.trial.should_prune():
                return False
            self.trial.set_user_attr(PRUNED, self.num_validations)
            return True
