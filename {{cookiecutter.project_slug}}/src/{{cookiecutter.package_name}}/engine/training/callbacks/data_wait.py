"""How long a run waited for its data."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class DataWait(Callback):
    """Logs `time/data`, the seconds of an epoch that a rank waited for batches of training, in the mean."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds = getattr(trainer.train_dataloader, "seconds_waited", None)
        if seconds is not None:
            pl_module.log("time/data", seconds, sync_dist=True)
