"""Regression: a number for each sample."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score

from ..engine import BaseModule, DataSpec, UserError

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
NUM_BINS, MAX_DEVIATION = 48, 3.0  # of the plotted histogram, on both sides of the mean


class Histogram(Metric):
    """Counts of samples `(NUM_BINS, NUM_BINS)` by their true and their predicted value, in standard deviations."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(NUM_BINS, NUM_BINS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        rows, columns = (
            ((x + MAX_DEVIATION) / (2 * MAX_DEVIATION) * NUM_BINS).long().clamp(0, NUM_BINS - 1)
            for x in (truth, predicted)
        )
        self.counts += torch.bincount(rows * NUM_BINS + columns, minlength=NUM_BINS**2).view(NUM_BINS, NUM_BINS)

    def compute(self) -> Tensor:
        return self.counts


class Regressor(BaseModule):
    """Trains `net(spec)` to outputs `(B, 1)`, standardised, from targets `(B,)` in their own units.

    Logs `rmse` and `mae` in the units of the target, and `r2`; the loss is computed from the standardised target.
    """

    train_metric = "rmse"

    def __init__(
        self,
        spec: DataSpec,
        net: Callable[[DataSpec], nn.Module],
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        loss: Literal["mse", "l1", "huber"] = "mse",
        warmup_steps: int = 0,
        compile: bool = False,
        channels_last: bool = False,
        weights: str | None = None,
        pretrained_lr_factor: float = 1.0,
        freeze: str | list[str] | None = None,
    ) -> None:
        super().__init__(
            spec, net, optimizer, scheduler, warmup_steps, compile, channels_last, weights, pretrained_lr_factor, freeze
        )
        if spec.task != "regression":
            raise UserError("the data has labels to predict, and no numbers: take the model of task=classification.")
        self.loss: Callable[[Tensor, Tensor], Tensor] = LOSSES[loss]
        scores: dict[str, Metric | MetricCollection] = {
            "rmse": MeanSquaredError(squared=False),
            "mae": MeanAbsoluteError(),
            "r2": R2Score(),
        }
        self.val_scores = MetricCollection(scores, prefix="val/")
        self.test_scores = MetricCollection(scores, prefix="test/")
        self.test_counts: Metric = Histogram()

    def standardized(self, y: Tensor) -> Tensor:
        return (y - self.spec.target_mean) / self.spec.target_std

    def score_inputs(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return outputs[:, 0], self.standardized(y)

    def batch_loss(self, outputs: Tensor, y: Tensor, training: bool) -> Tensor:
        predicted, truth = self.score_inputs(outputs, y)
        return self.loss(predicted, truth.to(predicted.dtype))

    def metric_sum(self, outputs: Tensor, y: Tensor) -> Tensor:
        predicted, truth = self.score_inputs(outputs, y)
        return (predicted - truth).square().sum()

    def metric_from_mean(self, mean: Tensor) -> Tensor:
        return mean.sqrt() * self.spec.target_std

    def read_scores(self, scores: MetricCollection) -> dict[str, Tensor]:
        """Converts scores to the units of the target, in which sums of squares could lose their digits."""
        values = super().read_scores(scores)
        return {name: value if name.endswith("r2") else value * self.spec.target_std for name, value in values.items()}

    def test_figures(self, first: Tensor, y: Tensor) -> dict[str, float]:
        return super().test_figures(self.standardized(first), y)
