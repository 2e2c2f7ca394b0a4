"""Cross entropy with class weights."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..spec import DataSpec
from .layers import Constants

ClassWeights = Literal["balanced"] | list[float] | None


class CrossEntropy(Constants):
    """Logits `(B, K)` and labels `(B,)` to the mean over the samples of cross entropy times the label's weight.

    The weights are divided by their mean over the training split, a constant, so that the loss stays on its scale.
    torch's own `weight=` divides by the sum of the weights in the batch, so that the gradient would depend on how a
    batch is split. Several labels `(B, K)` of 0 or 1 have no weights. Labels are smoothed in training mode alone.
    """

    scales: Tensor | None

    def __init__(self, spec: DataSpec, class_weights: ClassWeights = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"model.label_smoothing={label_smoothing} is out of range: give 0 or more, and less than 1."
            )
        self.several, self.label_smoothing = spec.task == "multilabel", label_smoothing
        if self.several and class_weights is not None:
            raise UserError("model.class_weights is for one label a sample: leave it out where there are several.")
        scales = None if class_weights is None else torch.tensor(label_scales(spec, class_weights))
        self.register_buffer("scales", scales, persistent=False)  # it follows from the DataSpec

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        if self.several:
            return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype) * (1 - smoothing) + smoothing / 2)
        if self.scales is None:
            return F.cross_entropy(logits, y, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, y, label_smoothing=smoothing, reduction="none")
        return (losses * self.scales[y]).mean()


def label_scales(spec: DataSpec, class_weights: Literal["balanced"] | list[float]) -> list[float]:
    """A weight for each label, with mean 1 over the training samples; `balanced` is scikit-learn's N / (K * count)."""
    counts, num_labels = spec.label_counts, spec.num_outputs
    if len(counts) != num_labels:
        raise UserError(
            f"model.class_weights={class_weights} needs the number of training samples of each label: "
            "set label_counts in the DataSpec of the data."
        )
    if class_weights == "balanced":
        missing = [label for label, count in zip(spec.labels, counts, strict=True) if count == 0]
        if missing:
            raise UserError(
                f"model.class_weights=balanced: no training sample shows '{missing[0]}', leave the label out."
            )
        return [sum(counts) / (num_labels * count) for count in counts]
    if len(class_weights) != num_labels:
        raise UserError(
            f"model.class_weights has {len(class_weights)} numbers for {num_labels} labels: "
            f"give one each, in the order {', '.join(spec.labels)}."
        )
    for weight in class_weights:
        if not 0 < weight < math.inf:
            raise UserError(f"model.class_weights: {weight} is out of range, give numbers above 0.")
    mean = sum(weight * count for weight, count in zip(class_weights, counts, strict=True)) / sum(counts)
    return [weight / mean for weight in class_weights]
