"""Which sample goes to which rank: the same samples at the same optimiser step under every strategy."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from ..refusal import Refusal


def per_process(batch_size: int, world_size: int) -> int:
    """Samples of one optimiser step that a process gets; the split must leave nothing over."""
    share, rest = divmod(batch_size, world_size)
    if rest:
        sizes = [size for size in (share * world_size, (share + 1) * world_size) if size]
        raise Refusal(
            f"data.batch_size={batch_size} does not divide over {world_size} processes: "
            f"the nearest that does is {' or '.join(map(str, sizes))}."
        )
    return share


class TrainingBatchSampler(Sampler[list[int]]):
    """The order of an epoch depends on the seed and the epoch alone; each rank takes its part of every batch.

    The last incomplete batch is dropped, because an optimiser step must see `batch_size` samples; the next epoch's
    order brings its samples back.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rank: int, world_size: int, reshuffle: bool = True
    ) -> None:
        per_process(batch_size, world_size)
        if seed < 0:
            raise Refusal(f"data.seed={seed} is out of range: give 0 or more.")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.reshuffle = reshuffle
        self.epoch = 0
        # Lightning calls set_epoch on `batch_sampler.sampler`, never on the batch sampler itself.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        if self.reshuffle:
            self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        for step in range(len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[self.rank :: self.world_size]


class EvaluationBatchSampler(Sampler[list[int]]):
    """Splits every batch over the ranks without padding: N samples are counted N times, never N + 1.

    Every rank yields the same number of batches, some of them empty: Lightning refuses an empty loader, and a rank
    with fewer batches than the others would leave them waiting.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.num_samples, self.batch_size):
            stop = min(start + self.batch_size, self.num_samples)
            yield list(range(start + self.rank, stop, self.world_size))
