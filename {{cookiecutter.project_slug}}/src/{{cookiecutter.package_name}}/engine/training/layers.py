"""Layers that the networks share: normalisation of the input, and activation checkpointing."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from ..errors import UserError
from ..spec import DataSpec


class Constants(nn.Module):
    """A module whose own buffers never change, so that ddp does not broadcast them."""

    has_constant_buffers = True


class Normalize(Constants):
    """Raw input `(B, C, ...)` of any dtype to floats of mean 0 and standard deviation 1, channel by channel.

    A part of the network, so that an exported artifact takes the same raw input as in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        shape = (-1, *(1 for _ in spec.input_shape[1:]))  # (C, 1, 1)
        self.register_buffer("mean", torch.tensor(spec.mean).view(shape))
        self.register_buffer("std", torch.tensor(spec.std).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.mean.dtype) - self.mean) / self.std


class Segments(nn.Sequential):
    """A sequence of layers with activation checkpointing (Chen et al., 2016, arXiv:1604.06174).

    Only the activations between segments are stored, and the others computed again in the backward pass: less memory
    for about a third more time, and the same result, dropout included. 0 segments store all activations.
    """

    def __init__(self, layers: list[nn.Module], num_segments: int) -> None:
        if not 0 <= num_segments <= len(layers):
            raise UserError(
                f"model.net.checkpoint_segments={num_segments} is out of range: give 0 (none) to {len(layers)}."
            )
        super().__init__(*layers)
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        if self.num_segments and self.training:
            x = checkpoint_sequential(self, self.num_segments, x, use_reentrant=False)
        else:
            for layer in self:
                x = layer(x)
        return x
