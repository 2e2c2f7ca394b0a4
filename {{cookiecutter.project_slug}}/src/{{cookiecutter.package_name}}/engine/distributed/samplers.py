"""Deals samples to ranks and micro-batches: the same samples at the same optimiser step under every strategy."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

from ..errors import UserError


def seeded(*numbers: int) -> torch.Generator:
    """Returns a generator that is seeded from all of the numbers, each 0 or more."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


@dataclass(frozen=True)
class BatchSplit:
    """How the `batch_size` samples of an optimiser step are split: over `num_devices`, each in `num_steps` parts."""

    batch_size: int
    num_devices: int
    num_steps: int
    is_auto: bool = False  # whether the callback `MicroBatchFinder` chooses another number of parts

    @classmethod
    def of(cls, batch_size: int, num_devices: int, micro_batch_size: int | str | None = None) -> "BatchSplit":
        """Raises `UserError` for a batch that does not divide.

        `micro_batch_size` is the most that a device holds at once.
        """
        share, rest = divmod(batch_size, num_devices)
        if rest:
            sizes = [size for size in (share * num_devices, (share + 1) * num_devices) if size]
            raise UserError(
                f"data.batch_size={batch_size} does not divide over {num_devices} devices: "
                f"the nearest that does is {' or '.join(map(str, sizes))}."
            )
        if not isinstance(micro_batch_size, int) or micro_batch_size >= share:
            return cls(batch_size, num_devices, 1, micro_batch_size == "auto")
        if micro_batch_size < 1 or share % micro_batch_size:
            divisors = [size for size in range(1, share + 1) if share % size == 0]
            below = max((size for size in divisors if size < micro_batch_size), default=1)
            above = min(size for size in divisors if size > micro_batch_size)
            raise UserError(
                f"data.micro_batch_size={micro_batch_size} does not divide the {share} samples of a device: "
                f"the nearest that does is {' or '.join(map(str, dict.fromkeys((below, above))))}."
            )
        return cls(batch_size, num_devices, share // micro_batch_size)

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // (self.num_devices * self.num_steps)

    def __str__(self) -> str:
        devices = f"{self.num_devices} {'device' if self.num_devices == 1 else 'devices'}"
        steps = f" x {self.num_steps} steps" if self.num_steps > 1 else ""
        auto = ", or as much of it at once as fits" if self.is_auto else ""
        return f"batch {self.batch_size} = {devices}{steps} x {self.micro_batch_size}{auto}"


class TrainingBatchSampler(Sampler[list[int]]):
    """The order of an epoch depends on the seed and the epoch alone; each rank takes its part of every batch.

    A rank's part comes in `num_steps` micro-batches. The last incomplete batch is dropped, because an optimiser step
    must see `batch_size` samples; the next epoch's order brings its samples back.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_steps: int = 1,
        reshuffle: bool = True,
    ) -> None:
        if seed < 0:
            raise UserError(f"data.seed={seed} is out of range: give 0 or more.")
        self.num_samples, self.batch_size, self.num_steps = num_samples, batch_size, num_steps
        self.seed, self.reshuffle = seed, reshuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.first = 0  # the micro-batch that the next pass begins with
        # Lightning calls set_epoch on `batch_sampler.sampler`, never on the batch sampler itself.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.batch_size * self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        first, self.first = self.first, 0
        order = self._order()
        size = self.batch_size // self.num_steps
        for position in range(first, len(self)):
            step, part = divmod(position, self.num_steps)
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[part * size + self.rank : (part + 1) * size : self.world_size]

    def step_samples(self, step: int) -> list[int]:
        """The samples of an optimiser step of this epoch on all ranks."""
        return self._order()[step * self.batch_size : (step + 1) * self.batch_size]

    def _order(self) -> list[int]:
        generator = seeded(self.seed, self.epoch if self.reshuffle else 0)
        order: list[int] = torch.randperm(self.num_samples, generator=generator).tolist()
        return order


class WithEpoch(Sampler[list[tuple[int, int]]]):
    """The same batches as pairs of epoch and index, for samples that change from epoch to epoch."""

    def __init__(self, sampler: TrainingBatchSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.sampler:
            yield [(self.sampler.epoch, index) for index in batch]


class EvaluationBatchSampler(Sampler[list[int]]):
    """Splits every batch over the ranks without padding: N samples are counted N times, never N + 1.

    Every rank yields the same number of batches, some of them empty: Lightning refuses an empty loader, and a rank
    with fewer batches than the others would leave them waiting.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
        self.num_samples, self.batch_size = num_samples, batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.num_samples, self.batch_size):
            stop = min(start + self.batch_size, self.num_samples)
            yield list(range(start + self.rank, stop, self.world_size))
