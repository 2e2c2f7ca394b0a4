"""Normalisation as part of the network, so that an exported artifact takes the same raw input as training did."""

import torch
from torch import Tensor, nn

from ..data.spec import DataSpec


class Normalize(nn.Module):
    """Raw pixels `(B, C, H, W)` of any dtype to floats of mean 0 and deviation 1, one figure a channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        shape = (-1, *(1 for _ in spec.input_shape[1:]))  # (C, 1, 1)
        self.register_buffer("mean", torch.tensor(spec.mean).view(shape))
        self.register_buffer("std", torch.tensor(spec.std).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.mean.dtype) - self.mean) / self.std
