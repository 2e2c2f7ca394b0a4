"""Augmentation of pictures by kornia, for `Augmented`."""

from collections.abc import Sequence

import kornia.augmentation as ka
import torch
from torch import Tensor, nn

# Those that draw one row of parameters for each picture: a batch is computed at once, to the same pixels. Others may
# share what they draw, as ColorJitter does the order of its steps, and take one picture after another.
AT_ONCE = (
    ka.RandomAffine,
    ka.RandomBrightness,
    ka.RandomContrast,
    ka.RandomGrayscale,
    ka.RandomHorizontalFlip,
    ka.RandomRotation,
    ka.RandomVerticalFlip,
)


class Transformed:
    """Kornia's `transforms` one after another, on pictures `(B, C, H, W)`, uint8 from 0 to 255.

    They draw from torch's global generator, which is set from that of each picture for as long as they do.
    """

    def __init__(self, transforms: Sequence[nn.Module]) -> None:
        self.transforms = list(transforms)

    def __call__(self, pictures: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        changed = pictures.float() / 255  # as kornia takes them
        with torch.random.fork_rng(devices=[]):
            for transform in self.transforms:
                seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in generators]
                changed = _applied(transform, changed, seeds)
        if changed.shape != pictures.shape:
            made, given = tuple(changed.shape[1:]), tuple(pictures.shape[1:])
            raise ValueError(f"augmentation made {made} of a picture of {given}")
        return (changed.clamp(0, 1) * 255).round().to(torch.uint8)


def _applied(transform: nn.Module, pictures: Tensor, seeds: Sequence[int]) -> Tensor:
    drawn, changed = [], []
    for picture, seed in zip(torch.split(pictures, 1), seeds, strict=True):
        torch.default_generator.manual_seed(seed)
        if isinstance(transform, AT_ONCE):
            drawn.append(transform.forward_parameters(picture.shape))
        else:
            changed.append(transform(picture))
    if not drawn:
        return torch.cat(changed)
    params = {name: torch.cat([of_picture[name] for of_picture in drawn]) for name in drawn[0]}
    params["forward_input_shape"] = torch.tensor(pictures.shape)
    together: Tensor = transform(pictures, params=params)
    return together
