"""Classification with one label for each sample, or with any number of labels."""

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
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

from ..engine import CrossEntropy, DataSpec, Deployed, Normalize, Output, UserError

Batch = tuple[Tensor, Tensor]
ClassWeights = Literal["balanced"] | list[float] | None


class WithProbabilities(nn.Module):
    """Raw input to logits `(B, K)` and their softmax, or their sigmoid where a sample may have several labels."""

    def __init__(self, net: nn.Module, several: bool) -> None:
        super().__init__()
        self.net, self.several = net, several

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.net(x)
        return logits, logits.sigmoid() if self.several else logits.softmax(dim=-1)


class Classifier(pl.LightningModule):
    """Trains `net(spec)` with cross entropy, from labels `(B,)`, or several labels `(B, K)` of 0 or 1.

    With `class_weights` a sample counts in each loss by its label's weight, but not in the metrics.
    """

    def __init__(
        self,
        spec: DataSpec,
        net: Callable[[DataSpec], nn.Module],
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        if spec.task == "regression":
            raise UserError("the data has numbers to predict, and no labels: take the model of task=regression.")
        self.spec = spec
        self.net = nn.Sequential(Normalize(spec), net(spec))
        self.optimizer, self.scheduler = optimizer, scheduler
        self.loss: nn.Module = CrossEntropy(spec, class_weights, label_smoothing)  # smoothed in training alone
        num_labels = spec.num_outputs
        acc: Metric
        f1: Metric
        if spec.task == "multilabel":
            acc, f1 = MultilabelAccuracy(num_labels, average="micro"), MultilabelF1Score(num_labels)
            self.confusion_matrix: Metric = MultilabelConfusionMatrix(num_labels)
        else:
            acc, f1 = MulticlassAccuracy(num_labels, average="micro"), MulticlassF1Score(num_labels)
            self.confusion_matrix = MulticlassConfusionMatrix(num_labels)
        scores = MetricCollection({"acc": acc, "f1": f1})
        self.train_acc, self.val_scores, self.test_scores = acc.clone(), scores.clone("val/"), scores.clone("test/")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss: Tensor = self.loss(logits, y)
        self.train_acc.update(logits, y)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.val_scores.update(logits, y)
        self.log("val/loss", self.loss(logits, y), prog_bar=True, batch_size=len(y))
        self.log_dict(self.val_scores, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.test_scores.update(logits, y)
        self.confusion_matrix.update(logits, y)  # plotted after the test
        self.log("test/loss", self.loss(logits, y), batch_size=len(y))
        self.log_dict(self.test_scores)

    def deployed(self) -> Deployed:
        """What is exported: probabilities beside the logits, which stand for `forward` in the test loop."""
        spec, several = self.spec, self.spec.task == "multilabel"
        probabilities = Output(labels=spec.labels, multiple=several, label_counts=spec.label_counts)
        return Deployed(
            network=WithProbabilities(self.net, several),
            inputs={"x": spec.as_input()},
            outputs={"logits": Output(), "probabilities": probabilities},
            result="logits",
            metric="test/acc",
            example={"x": torch.zeros(2, *spec.input_shape, dtype=getattr(torch, spec.input_dtype))},
        )

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "monitor": "val/loss"}}
