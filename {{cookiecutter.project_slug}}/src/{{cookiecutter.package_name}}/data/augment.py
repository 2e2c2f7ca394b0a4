"""Augmentation of pictures by kornia, for `Augmented`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Transformed:
    """Kornia's `transforms` one after another, on one picture `(C, H, W)`, uint8 from 0 to 255.

    They draw from torch's global generator, which is set from the sample's own for as long as they do.
    """

    def __init__(self, transforms: Sequence[nn.Module]) -> None:
        self.transforms = list(transforms)

    def __call__(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            changed = picture[None].float() / 255  # as kornia takes them: (1, C, H, W), 0 to 1
            for transform in self.transforms:
                changed = transform(changed)
        if changed.shape[1:] != picture.shape:
            raise ValueError(f"augmentation made {tuple(changed.shape[1:])} of a picture of {tuple(picture.shape)}")
        return (changed[0].clamp(0, 1) * 255).round().to(torch.uint8)
