"""Augmentation of pictures by kornia, for `Augmented`."""

from collections.abc import Mapping, Sequence

import kornia.augmentation as ka
import torch
from torch import Tensor, nn

# Transforms that draw one row of parameters for each picture: a batch is computed at once, to the same pixels. Others
# may share what they draw, as ColorJitter does the order of its steps, and take one picture after another.
BATCHED = (
    ka.RandomAffine,
    ka.RandomBrightness,
    ka.RandomContrast,
    ka.RandomGrayscale,
    ka.RandomHorizontalFlip,
    ka.RandomRotation,
    ka.RandomVerticalFlip,
)


class KorniaAugmentation:
    """Applies kornia's `transforms` one after another to pictures `(B, C, H, W)`, uint8 from 0 to 255.

    They draw from torch's global generator, which is seeded for each picture from its own, and restored.
    """

    def __init__(self, transforms: Sequence[nn.Module]) -> None:
        self.transforms = list(transforms)

    def __call__(self, pictures: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        changed = pictures.float() / 255  # the range that kornia expects
        with torch.random.fork_rng(devices=[]):
            for transform in self.transforms:
                seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in generators]
                changed = _apply(transform, changed, seeds)
        if changed.shape != pictures.shape:
            made, given = tuple(changed.shape[1:]), tuple(pictures.shape[1:])
            raise ValueError(f"augmentation made {made} of a picture of {given}")
        return (changed.clamp(0, 1) * 255).round().to(torch.uint8)


def augmentation(transforms: Mapping[str, nn.Module | None] | None) -> KorniaAugmentation | None:
    """From the section `augment` of a data set, in which null leaves a transform out."""
    chosen = [transform for transform in (transforms or {}).values() if transform is not None]
    return KorniaAugmentation(chosen) if chosen else None


def _apply(transform: nn.Module, pictures: Tensor, seeds: Sequence[int]) -> Tensor:
    drawn, changed = [], []
    for picture, seed in zip(torch.split(pictures, 1), seeds, strict=True):
        torch.default_generator.manual_seed(seed)
        if isinstance(transform, BATCHED):
            drawn.append(transform.forward_parameters(picture.shape))
        else:
            changed.append(transform(picture))
    if not drawn:
        return torch.cat(changed)
    params = {name: torch.cat([parameters[name] for parameters in drawn]) for name in drawn[0]}
    params["forward_input_shape"] = torch.tensor(pictures.shape)
    result: Tensor = transform(pictures, params=params)
    return result
