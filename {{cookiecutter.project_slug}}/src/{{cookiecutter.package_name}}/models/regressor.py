"""Regression: a number for each sample."""

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

from ..engine import DataSpec, Deployed, Normalize, Output, UserError

Batch = tuple[Tensor, Tensor]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


class InUnits(nn.Module):
    """Raw input to predictions `(B, 1)` in the units of the target, which `net` gives in deviations from its mean.

    They are of float64 if the target has an offset: float32 holds 7 digits.
    """

    def __init__(self, net: nn.Module, spec: DataSpec) -> None:
        super().__init__()
        self.net, self.mean, self.std, self.offset = net, spec.target_mean, spec.target_std, spec.target_offset

    def forward(self, x: Tensor) -> Tensor:
        predicted: Tensor = self.net(x) * self.std + self.mean
        return predicted.double() + self.offset if self.offset else predicted


class Regressor(pl.LightningModule):
    """Trains `net(spec)` to outputs `(B, 1)`, standardised, from targets `(B,)` in their own units, less an offset.

    Logs `rmse` and `mae` in the units of the target, and `r2`; the loss is computed from the standardised target.
    """

    def __init__(
        self,
        spec: DataSpec,
        net: Callable[[DataSpec], nn.Module],
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        loss: Literal["mse", "l1", "huber"] = "mse",
    ) -> None:
        super().__init__()
        if spec.task != "regression":
            raise UserError("the data has labels to predict, and no numbers: take the model of task=classification.")
        self.spec = spec
        self.net = nn.Sequential(Normalize(spec), net(spec))
        self.optimizer, self.scheduler = optimizer, scheduler
        self.loss = LOSSES[loss]
        scores = MetricCollection(
            {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError(), "r2": R2Score()}
        )
        self.train_rmse = MeanSquaredError(squared=False)
        self.val_scores, self.test_scores = scores.clone("val/"), scores.clone("test/")

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        return outputs

    def step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and predictions and targets `(B,)` in the target's units, both less its mean to keep all digits."""
        x, y = batch
        predicted, std = self(x)[:, 0], self.spec.target_std
        truth = (y - self.spec.target_mean).to(predicted.dtype)
        return self.loss(predicted, truth / std), predicted * std, truth

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, predicted, truth = self.step(batch)
        self.train_rmse.update(predicted, truth)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(truth))
        self.log("train/rmse", self.train_rmse, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss, predicted, truth = self.step(batch)
        self.val_scores.update(predicted, truth)
        self.log("val/loss", loss, prog_bar=True, batch_size=len(truth))
        self.log_dict(self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        loss, predicted, truth = self.step(batch)
        self.test_scores.update(predicted, truth)
        self.log("test/loss", loss, batch_size=len(truth))
        self.log_dict(self.test_scores)

    def deployed(self) -> Deployed:
        """What is exported: the prediction in the units of the target."""
        spec, std = self.spec, self.spec.target_std
        mean = spec.target_offset + spec.target_mean
        return Deployed(
            network=InUnits(self.net, spec),
            inputs={"x": spec.as_input()},
            outputs={"prediction": Output(mean=(mean,), std=(std,), double=bool(spec.target_offset))},
            result=lambda outputs: (outputs["prediction"] - mean) / std,
            metric="test/r2",
            example={"x": torch.zeros(2, *spec.input_shape, dtype=getattr(torch, spec.input_dtype))},
        )

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "monitor": "val/loss"}}
