"""From what a network gives to what its users are told: a part of what is exported."""

import torch
from torch import Tensor

from ..spec import DataSpec
from .layers import Constants


class OutputLayer(Constants):
    """`(B, K)` to the outputs of the task in their order, each `(B, K)`.

    Logits and their softmax, or for several labels at once their sigmoid; of regression, a number in the units of the
    target, because the network gives it with mean 0 and deviation 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.task = spec.task
        if self.task == "regression":  # not among the weights: they follow from the DataSpec
            self.register_buffer("mean", torch.tensor(spec.target_mean), persistent=False)
            self.register_buffer("std", torch.tensor(spec.target_std), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.task == "regression":
            return (x * self.std + self.mean,)
        return x, x.sigmoid() if self.task == "multilabel" else x.softmax(dim=-1)
