"""The callback in the process of a trial: reports each validation to the study, and ends a trial that is pruned."""

import lightning.pytorch as pl
import optuna
import torch
from lightning.pytorch.callbacks import Callback
from optuna.pruners import NopPruner

from ..config.validation import build
from ..errors import UserError, nearest
from .study import PRUNED, SETTINGS, UNLOGGED, open_storage, open_study, usable_storage


class PruningCallback(Callback):
    """The first rank reports; all ranks hear whether the trial is pruned, so that they stop after the same epoch."""

    def __init__(self, folder: str, trial_id: int) -> None:
        self.folder, self.trial_id, self.num_validations = folder, trial_id, 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            with usable_storage(self.folder):
                study = open_study(self.folder, open_storage(self.folder))
            settings = study.user_attrs[SETTINGS]
            study.pruner = build(settings["pruner"], "search.pruner") if settings["pruner"] else NopPruner()
            self.monitor, self.trial = settings["monitor"], optuna.Trial(study, self.trial_id)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.num_validations += 1
            is_pruned = trainer.is_global_zero and self._report(trainer.callback_metrics)
            trainer.should_stop = trainer.strategy.broadcast(is_pruned) or trainer.should_stop

    def _report(self, metrics: dict[str, torch.Tensor]) -> bool:
        """Returns whether the trial is pruned."""
        if self.monitor not in metrics:
            known = [name for name in metrics if name.startswith("val/")]
            raise UserError(f"{UNLOGGED}'{self.monitor}' is never logged; {nearest(self.monitor, known)}")
        with usable_storage(self.folder):
            self.trial.report(float(metrics[self.monitor]), self.num_validations - 1)
            is_pruned = self.trial.should_prune()
            if is_pruned:
                self.trial.set_user_attr(PRUNED, self.num_validations)
        return is_pruned
