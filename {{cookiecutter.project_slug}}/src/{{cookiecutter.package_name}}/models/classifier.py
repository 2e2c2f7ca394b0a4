"""Classification with one label for each sample, or with any number of labels."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelConfusionMatrix,
    MultilabelF1Score,
)

from ..engine import BaseModule, ClassWeights, CrossEntropy, DataSpec, UserError


class Classifier(BaseModule):
    """Trains `net(spec)` with cross entropy, from labels `(B,)`, or several labels `(B, K)` of 0 or 1.

    Logs `acc` and `f1` (macro); for several labels, `acc` is the share of correct answers over samples and labels. With
    `class_weights` a sample counts in each loss by its label's weight, but not in the metrics.
    """

    train_metric = "acc"

    def __init__(
        self,
        spec: DataSpec,
        net: Callable[[DataSpec], nn.Module],
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        warmup_steps: int = 0,
        compile: bool = False,
        channels_last: bool = False,
        weights: str | None = None,
        pretrained_lr_factor: float = 1.0,
        freeze: str | list[str] | None = None,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(
            spec, net, optimizer, scheduler, warmup_steps, compile, channels_last, weights, pretrained_lr_factor, freeze
        )
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"model.label_smoothing={label_smoothing} is out of range: give 0 or more, and less than 1."
            )
        if spec.task == "regression":
            raise UserError("the data has numbers to predict, and no labels: take the model of task=regression.")
        self.label_smoothing = label_smoothing
        self.several = spec.task == "multilabel"
        if self.several and class_weights is not None:
            raise UserError("model.class_weights is for one label a sample: leave it out where there are several.")
        self.loss = CrossEntropy(spec, class_weights)
        num_labels = spec.num_outputs
        scores: dict[str, Metric | MetricCollection]
        if self.several:
            scores = {"acc": MultilabelAccuracy(num_labels, average="micro"), "f1": MultilabelF1Score(num_labels)}
            self.test_counts: Metric = MultilabelConfusionMatrix(num_labels)  # (K, 2, 2)
        else:
            scores = {"acc": MulticlassAccuracy(num_labels, average="micro"), "f1": MulticlassF1Score(num_labels)}
            self.test_counts = MulticlassConfusionMatrix(num_labels)  # (K, K), rows the true labels
        self.val_scores = MetricCollection(scores, prefix="val/")
        self.test_scores = MetricCollection(scores, prefix="test/")

    def batch_loss(self, outputs: Tensor, y: Tensor, training: bool) -> Tensor:
        smoothing = self.label_smoothing if training else 0.0
        if self.several:
            y = y.to(outputs.dtype) * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(outputs, y)
        loss: Tensor = self.loss(outputs, y, smoothing)
        return loss

    def metric_sum(self, outputs: Tensor, y: Tensor) -> Tensor:
        if self.several:
            return ((outputs > 0) == (y > 0.5)).sum()
        return (outputs.argmax(dim=1) == y).sum()

    def metric_from_mean(self, mean: Tensor) -> Tensor:
        return mean / self.spec.num_outputs if self.several else mean
