"""Ordinary loaders dealt to ranks and micro-batches: which sample goes where, resumption, random numbers, refusals."""

import multiprocessing
import os
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from digits import Digits, one_device, rolled
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)
from torchmetrics import MeanMetric, Metric

from {{ cookiecutter.package_name }}.engine.data.description import DataDescription
from {{ cookiecutter.package_name }}.engine.data.samples import SamplesInMemory
from {{ cookiecutter.package_name }}.engine.distributed import worker_start
from {{ cookiecutter.package_name }}.engine.distributed.dealing import (
    Share,
    deal,
    sample_generators,
)
from {{ cookiecutter.package_name }}.engine.distributed.plan import BatchSplit
from {{ cookiecutter.package_name }}.engine.errors import Fault, UserError, lost_worker
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training.build import build_datamodule


def numbers(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(size))


def dealt(loader: DataLoader[Any], share: Share, epoch: int = 0, name: str = "train_dataloader", **options: Any) -> Any:
    """Lightning sets the epoch in this way."""
    found = deal(loader, share, name, **options)
    found.batch_sampler.sampler.set_epoch(epoch)
    return found


def parts(loader: Any) -> list[Any]:
    return list(loader.batch_sampler)


def own(loader: Any) -> list[list[int]]:
    """The samples of each part, without those of a process that has none of its own."""
    return [part.indices[: part.num_own] for part in parts(loader)]


def on_ranks(loader: DataLoader[Any], world_size: int, num_steps: int = 1, **options: Any) -> list[list[list[int]]]:
    return [own(dealt(loader, Share(rank, world_size, num_steps), **options)) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_optimiser_step_sees_the_same_samples_however_they_are_split(
    world_size: int, num_steps: int, drop_last: bool
) -> None:
    loader = DataLoader(numbers(97), batch_size=24, shuffle=True, drop_last=drop_last)
    alone, ranks = own(dealt(loader, Share())), on_ranks(loader, world_size, num_steps)
    assert [len(batch) for batch in alone] == [24, 24, 24, 24, *([] if drop_last else [1])]
    assert {len(found) for found in ranks} == {len(alone) * num_steps} == {len(dealt(loader, Share(0, 2, num_steps)))}
    for step, batch in enumerate(alone):
        steps = slice(step * num_steps, (step + 1) * num_steps)
        pieces = [piece for found in ranks for piece in found[steps]]
        assert sorted(batch) == sorted(index for piece in pieces for index in piece)
        assert max(map(len, pieces)) <= -(-24 // (world_size * num_steps))


def test_part_knows_its_size_and_a_rank_without_a_sample_gets_one_that_stands_in() -> None:
    loader = DataLoader(numbers(5), batch_size=4)
    first, last = parts(dealt(loader, Share(1, 3)))
    assert (first.indices, first.num_own, first.num_whole) == ([1], 1, 4)
    assert (last.indices, last.num_own, last.num_whole) == ([4, 4], 0, 1)


def test_order_is_that_of_the_sampler_and_depends_on_seed_and_epoch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(numbers(100), batch_size=12, shuffle=True)
    first = own(dealt(loader, Share()))
    torch.rand(1)
    assert own(dealt(loader, Share())) == first
    assert own(dealt(loader, Share(), epoch=1)) != first
    assert sorted(index for batch in first for index in batch) == list(range(100))
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert own(dealt(loader, Share())) != first
    seeded = DataLoader(numbers(100), batch_size=12, shuffle=True, generator=torch.Generator().manual_seed(7))
    assert own(dealt(seeded, Share())) == own(dealt(loader, Share())), "a generator of the loader's names the seed"
    assert own(dealt(seeded, Share())) == own(dealt(seeded, Share())), "the loader is left as it was"
    assert own(dealt(DataLoader(numbers(5), batch_size=2), Share())) == [[0, 1], [2, 3], [4]]


class GlobalOrder(Sampler[int]):
    """Draws from all global generators, as a sampler without a generator of its own."""

    def __iter__(self) -> Iterator[int]:
        order = np.random.permutation(20)[torch.randperm(20).numpy()].tolist()
        random.shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return 20


def global_numbers() -> tuple[float, ...]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


@pytest.mark.parametrize("sampler", [GlobalOrder(), WeightedRandomSampler(torch.arange(20.0), 20)])
def test_any_sampler_gives_all_ranks_the_same_order_and_moves_no_generator(sampler: Any) -> None:
    loader = DataLoader(numbers(20), batch_size=6, sampler=sampler)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    alone = own(dealt(loader, Share(), epoch=3))
    after = global_numbers()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    assert global_numbers() == after
    ranks = on_ranks(loader, 3, epoch=3)
    together = [sorted(index for found in ranks for index in found[step]) for step in range(len(alone))]
    assert together == [sorted(batch) for batch in alone]
    assert own(dealt(loader, Share(), epoch=4)) != alone


class OrderOfItsOwn(Sampler[int]):
    """Goes on from the order of the pass before, by a generator that only it knows: a habit of chemprop's."""

    def __init__(self, seed: int | None = 5) -> None:
        self.numbers, self.own = np.arange(20), np.random.default_rng(seed)

    def __iter__(self) -> Iterator[int]:
        self.own.shuffle(self.numbers)
        return iter(self.numbers)

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize("keys", [np.arange(20), torch.arange(20), [f"{number}" for number in range(20)]])
def test_keys_of_a_sampler_may_be_of_any_kind_where_samples_draw(keys: Any) -> None:
    class Keyed(Noise):
        def __getitem__(self, index: Any) -> Tensor:
            return super().__getitem__(int(index))

    class Order(OrderOfItsOwn):
        generator = np.random.default_rng(2)  # of numpy, not of torch

        def __iter__(self) -> Iterator[Any]:
            return iter(keys)

    def rows(share: Share) -> list[Any]:
        return torch.cat(list(dealt(DataLoader(Keyed(), batch_size=6, sampler=Order()), share))).tolist()

    assert sorted(rows(Share(0, 2)) + rows(Share(1, 2))) == sorted(rows(Share()))


def test_order_of_a_sampler_with_a_state_follows_from_the_epoch_in_a_resumed_run_too() -> None:
    def loader() -> Any:
        return dealt(DataLoader(numbers(20), batch_size=6, sampler=OrderOfItsOwn()), Share(1, 2))

    uninterrupted, orders = loader(), []
    for epoch in range(3):
        uninterrupted.batch_sampler.sampler.set_epoch(epoch)
        orders.append(own(uninterrupted))
        assert own(uninterrupted) == orders[-1], "another pass of the same epoch"
    assert orders[0] != orders[1] != orders[2]
    resumed = loader()
    resumed.batch_sampler.sampler.set_epoch(2)
    assert own(resumed) == orders[2]


@pytest.mark.parametrize("place", ["sampler", "split"])
@pytest.mark.parametrize("seed", [5, None])
def test_processes_whose_orders_differ_are_refused(place: str, seed: int | None) -> None:
    checksums: list[int] = []

    def loader(rank: int, total: Any) -> Any:
        sampler = OrderOfItsOwn(seed)
        dataset: Any = Subset(numbers(20), list(sampler)) if place == "split" else numbers(20)
        source = DataLoader(dataset, batch_size=6, sampler=sampler if place == "sampler" else None)
        return dealt(source, Share(rank, 2), total=total)

    def noted(number: int) -> int:
        checksums.append(number)
        return 2 * number

    next(iter(loader(1, noted)))
    second = iter(loader(0, lambda number: number + checksums.pop(0)))
    if seed is None:
        with pytest.raises(UserError, match=r"different orders: .* draws from a generator without a seed"):
            next(second)
    else:
        next(second)


@pytest.mark.parametrize("num_samples", [1, 2, 5, 33, 359])
@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_evaluation_counts_every_sample_once_in_equally_many_batches(
    num_samples: int, batch_size: int, world_size: int, num_steps: int
) -> None:
    loader = DataLoader(numbers(num_samples), batch_size=batch_size)
    ranks = on_ranks(loader, world_size, num_steps, name="val_dataloader")
    assert {len(found) for found in ranks} == {
        len(dealt(loader, Share(0, world_size, num_steps), name="val_dataloader"))
    }
    assert sorted(index for found in ranks for batch in found for index in batch) == list(range(num_samples))
    assert num_samples < world_size or all(batch for found in ranks for batch in found)


def test_one_process_evaluates_the_batches_of_the_loader() -> None:
    loader = dealt(DataLoader(numbers(33), batch_size=16), Share(), name="val_dataloader")
    assert [len(batch) for batch in own(loader)] == [16, 16, 1]


@pytest.mark.parametrize("limit", [1, 2, 3, 0.34, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("num_samples", [5, 40])
def test_limit_selects_the_first_batches_which_are_dealt_then(limit: float, world_size: int, num_samples: int) -> None:
    loader = DataLoader(numbers(num_samples), batch_size=num_samples // 5)  # five batches
    num_batches = min(5, limit) if isinstance(limit, int) else int(5 * limit)
    ranks = [dealt(loader, Share(rank, world_size), name="val_dataloader", limit=limit) for rank in range(world_size)]
    length = len(ranks[0])
    taken = min(length, limit) if isinstance(limit, int) else int(length * limit)  # as Lightning does
    found = [index for each in ranks for batch in own(each)[: int(taken)] for index in batch]
    assert sorted(found) == list(range(num_batches * (num_samples // 5)))


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ((64, 1, None), "batch 64 = 1 device x 64"),
        ((128, 2, 32), "batch 128 = 2 devices x 2 steps x 32"),
        ((64, 2, 500), "batch 64 = 2 devices x 32"),
        ((128, 3, None), "batch 128 = 3 devices x 42 to 43"),
        ((2, 3, None), "batch 2 = 3 devices x 0 to 1"),
        ((64, 1, 48), "batch 64 = 1 device x 2 steps x 32"),
        ((97, 2, 16), "batch 97 = 2 devices x 4 steps x 12 to 13"),
        ((64, 2, "auto"), "batch 64 = 2 devices x 32, or as much of it at once as fits"),
    ],
)
def test_split_of_a_batch_as_text(split: tuple[int, int, int | str | None], text: str) -> None:
    batch_size, num_devices, micro_batch_size = split
    section = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
    assert str(BatchSplit.of(section, num_devices)) == text


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"batch_size": 64, "micro_batch_size": 0}, r"data.micro_batch_size=0 holds no sample: give 1 or more"),
        ({"batch_size": 64, "micro_batch_size": True}, r"data.micro_batch_size=True does not fit: it takes a number"),
        ({"batch_size": 64, "micro_batch_size": "all"}, r"data.micro_batch_size=all does not fit: it takes a number"),
        ({"batch_size": None, "micro_batch_size": 4}, r"data.micro_batch_size needs .*: give data.batch_size"),
    ],
)
def test_micro_batch_size_that_splits_nothing_is_refused(section: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        BatchSplit.of({"_target_": "lightning.pytorch.LightningDataModule", **section}, 1)


def test_size_of_a_batch_is_that_of_the_section_or_the_default_of_the_datamodule() -> None:
    target = {"_target_": f"{Digits.__module__}.{Digits.__qualname__}"}
    assert BatchSplit.of({**target, "batch_size": 48}, 2).batch_size == 48
    assert BatchSplit.of({**target, "micro_batch_size": 16}, 2) == BatchSplit(64, 2, 2)
    assert BatchSplit.of({"_target_": "lightning.pytorch.LightningDataModule"}, 2) == BatchSplit(None, 2, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("share", [Share(), Share(1, 2, 2)])
def test_loader_resumes_within_an_epoch(num_workers: int, share: Share) -> None:
    def loader() -> Any:
        return dealt(Digits(num_workers=num_workers, augment=rolled).train_dataloader(), share, epoch=3)

    whole = loader()
    expected = [batch[0] for batch in whole]
    iterator = iter(whole)
    for _ in range(5):
        next(iterator)
    state = whole.state_dict()
    assert (state["epoch"], state["num_delivered"]) == (3, 5), "batches that workers fetched ahead do not count"
    resumed = loader()
    resumed.load_state_dict(state)
    rest = [batch[0] for batch in resumed]
    assert len(rest) == len(expected) - 5
    assert all(torch.equal(found, sought) for found, sought in zip(rest, expected[5:], strict=True))
    assert len(list(resumed)) == len(expected), "the next pass is complete"


def test_loader_begins_the_next_epoch_after_a_complete_one() -> None:
    loader = dealt(Digits().train_dataloader(), Share())
    loader.load_state_dict({**loader.state_dict(), "epoch": 3, "num_delivered": len(loader)})
    loader.batch_sampler.sampler.set_epoch(4)
    assert len(list(loader)) == len(loader)


def test_other_batches_are_refused_within_an_epoch_and_accepted_after_it() -> None:
    loader = dealt(Digits(batch_size=64).train_dataloader(), Share())
    for num_delivered in (5, len(loader)):
        state = {**loader.state_dict(), "num_delivered": num_delivered}
        loader.load_state_dict(state)
        other = dealt(Digits(batch_size=32).train_dataloader(), Share())
        if num_delivered == 5:
            with pytest.raises(UserError, match=r"in the middle of an epoch with .*batch_size=64.* go on with .*=32"):
                other.load_state_dict(state)
            two_ranks = dealt(Digits(batch_size=64).train_dataloader(), Share(0, 2))
            with pytest.raises(UserError, match=r"with .*world_size=1, seed=42, and would go on with .*world_size=2"):
                two_ranks.load_state_dict(state)
        else:
            other.load_state_dict(state)


class DrawnSplit(pl.LightningDataModule):
    """Draws in its constructor and in each `setup`, without a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = [global_numbers()]

    def setup(self, stage: str) -> None:
        self.drawn.append(global_numbers())


def test_split_that_is_drawn_without_a_generator_is_the_same_in_an_evaluation() -> None:
    section = {"_target_": f"{DrawnSplit.__module__}.{DrawnSplit.__qualname__}"}
    found = []
    for seed in (3, 3, 4):
        datamodule: Any = build_datamodule(section, seed)
        before = torch.get_rng_state()
        datamodule.setup("fit")
        assert torch.equal(torch.get_rng_state(), before), "random numbers of the run must not change"
        global_numbers()
        datamodule.setup("test")
        found.append(datamodule.drawn)
    assert found[0] == found[1] != found[2]
    assert found[0][1] == found[0][2]


def test_evaluation_draws_the_same_numbers_in_each_epoch() -> None:
    for name in ("train_dataloader", "val_dataloader"):
        loader = deal(DataLoader(Noise(), batch_size=4), Share(), name)
        epochs = []
        for epoch in (0, 1):
            loader.batch_sampler.sampler.set_epoch(epoch)
            epochs.append(torch.cat(list(loader)))
        assert torch.equal(*epochs) == (name == "val_dataloader")


class Noise(Dataset[Tensor]):
    """Draws from all three generators."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, *global_numbers()], dtype=torch.float64)


class SeldomNoise(Noise):
    """Draws for a few of its samples, as one does that changes the pictures of a rare class only."""

    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index) if index % 5 == 0 else torch.tensor([index] * 4, dtype=torch.float64)


class NoiseAtOnce(Noise):
    """Counts the calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        self.calls.append(indices)
        return [self[index] for index in indices]


@pytest.mark.parametrize(
    "kind",
    [
        Noise,
        SeldomNoise,
        NoiseAtOnce,
        lambda: ConcatDataset([Subset(Noise(), range(18, 20)), Subset(Noise(), range(18))]),
    ],
)
def test_random_sample_depends_on_seed_epoch_and_index_alone(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(share: Share, epoch: int = 1, num_workers: int = 0, batch_size: int = 6) -> dict[int, list[float]]:
        loader = DataLoader(subset, batch_size=batch_size, shuffle=True, num_workers=num_workers)
        rows = torch.cat(list(dealt(loader, share, epoch))).tolist()
        return {int(index): values for index, *values in rows}

    subset, _ = random_split(kind(), [15, len(kind()) - 15], torch.Generator().manual_seed(2))
    before = global_numbers(), torch.get_rng_state(), random.getstate()
    alone = drawn(Share())
    assert torch.equal(before[1], torch.get_rng_state())
    assert before[2] == random.getstate()
    assert len({tuple(values) for values in alone.values()}) == len(alone)
    for other in (drawn(Share(1, 2)), drawn(Share(1, 2, 2), num_workers=2), drawn(Share(), batch_size=4)):
        assert other
        assert all(alone[index] == values for index, values in other.items())
    assert drawn(Share(), epoch=2) != alone
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert drawn(Share()) != alone


class Once(Dataset[int]):
    """Draws nothing, and counts the calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __len__(self) -> int:
        return 20

    def __getitems__(self, indices: list[int]) -> list[int]:
        self.calls.append(list(indices))
        return list(indices)


def test_innermost_data_set_fetches_a_batch_at_once_behind_subset_and_concatenation() -> None:
    first, second = Once(), Once()
    loader = DataLoader(Subset(ConcatDataset([first, Subset(second, [5, 6, 7])]), [22, 3, 20, 4]), batch_size=4)
    (batch,) = dealt(loader, Share())
    assert batch.tolist() == [7, 3, 5, 4]
    assert (first.calls, second.calls) == ([[3, 4]], [[7, 5]])


def test_numbers_of_a_sample_for_user_code_depend_on_seed_epoch_and_index_alone() -> None:
    class Drawn(Once):
        def __getitems__(self, indices: list[int]) -> list[int]:
            return [int(torch.randint(2**40, (), generator=each)) for each in sample_generators(indices)]

    def drawn(share: Share, epoch: int = 1) -> dict[int, int]:
        loader = dealt(DataLoader(Drawn(), batch_size=6), share, epoch)
        found = torch.cat(list(loader)).tolist()
        return dict(zip([index for part in parts(loader) for index in part.indices], found, strict=True))

    alone, second = drawn(Share()), drawn(Share(1, 2))
    assert len(set(alone.values())) == 20
    assert all(alone[index] == number for index, number in second.items())
    assert alone != drawn(Share(), epoch=2)


def test_random_batch_that_is_not_a_list_of_samples_is_refused() -> None:
    class Collated(Once):
        def __getitems__(self, indices: list[int]) -> Any:
            return torch.rand(len(indices))

    with pytest.raises(UserError, match=r"Collated.__getitems__ draws random numbers and returns no list"):
        next(iter(dealt(DataLoader(Collated(), batch_size=6, collate_fn=lambda batch: batch), Share())))


def summed(samples: list[Any]) -> Any:
    return torch.stack([sample[0] for sample in samples]).sum()


def note_worker(worker: int) -> None:
    torch.set_num_threads(1)


def test_other_arguments_of_the_loader_are_kept() -> None:
    options = {"num_workers": 1, "timeout": 50, "worker_init_fn": note_worker, "prefetch_factor": 3}
    loader = DataLoader(
        numbers(9),
        batch_size=4,
        collate_fn=summed,
        persistent_workers=True,
        multiprocessing_context="fork",
        pin_memory=False,
        **options,
    )
    found = dealt(loader, Share(0, 2), name="val_dataloader")
    for name in ("num_workers", "timeout", "prefetch_factor", "persistent_workers", "pin_memory"):
        assert getattr(found, name) == getattr(loader, name), name
    assert found.multiprocessing_context == loader.multiprocessing_context
    assert found.worker_init_fn.init is note_worker  # type: ignore[union-attr]
    assert [int(batch) for batch in found] == [0 + 2, 3 + 5, 6 + 8]
    assert found.dataset.tensors is loader.dataset.tensors  # type: ignore[attr-defined]


NUM_HANGING = multiprocessing.Value("i", 0)  # children of the next forks that hang before they run Python


def hang() -> None:
    if NUM_HANGING.value > 0:
        NUM_HANGING.value -= 1
        time.sleep(600)


os.register_at_fork(after_in_child=hang)


@pytest.mark.parametrize("is_persistent", [False, True])
def test_worker_process_that_hangs_in_its_fork_is_started_anew(
    is_persistent: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it happens under Python 3.11; the random numbers of the workers are the same."""
    monkeypatch.setattr(worker_start, "FORK_SECONDS", 3)

    def epoch() -> list[Tensor]:
        options = {"num_workers": 2, "persistent_workers": is_persistent, "worker_init_fn": note_worker}
        found = dealt(DataLoader(numbers(9), batch_size=3, shuffle=True, **options), Share())
        return [batch[0] for _ in range(2) for batch in found]

    torch.manual_seed(1)
    undisturbed = epoch()
    NUM_HANGING.value = 1
    torch.manual_seed(1)
    torch.testing.assert_close(epoch(), undisturbed, rtol=0, atol=0)
    assert caplog.text.count("hung before it began: all are started anew") == 1
    NUM_HANGING.value = 2 * worker_start.NUM_STARTS
    with pytest.raises(Fault, match=r"hang before they begin: take data\.num_workers=0"):
        epoch()
    NUM_HANGING.value = 0


class Unsized(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


class Stream(IterableDataset[int]):
    def __init__(self, first: int = 0, step: int = 1) -> None:
        self.first, self.step = first, step

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, 7, self.step))


class Sharded(Stream):
    def shard(self, rank: int, world_size: int) -> "Sharded":
        return Sharded(rank, world_size)


class OwnLoader(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("loader", "remedy"),
    [
        (DataLoader(numbers(4), batch_sampler=BatchSampler(RandomSampler(range(4)), 2, False)), "give it batch_size="),
        (DataLoader(numbers(4), batch_size=None), "give it batch_size="),
        (DataLoader(numbers(4), batch_size=2, sampler=Unsized()), "give Unsized a length"),
        (DataLoader(numbers(4), sampler=DistributedSampler(numbers(4), 2, 0)), "leave out its DistributedSampler"),
        (DataLoader(Stream(), batch_size=2), r"give Stream a method shard\(rank, world_size\)"),
        (DataLoader(Sharded()), "give it a batch_size of 2 or more"),
        (OwnLoader(numbers(4)), "return torch's DataLoader in place of a OwnLoader"),
        ([1, 2], "return torch's DataLoader in place of a list"),
    ],
)
def test_what_cannot_be_dealt_is_refused_on_several_ranks_and_kept_on_one(loader: Any, remedy: str) -> None:
    with pytest.raises(UserError, match=f"train_dataloader cannot be split over several processes .*: {remedy}"):
        deal(loader, Share(0, 2), "train_dataloader")
    list(deal(loader, Share(), "train_dataloader"))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata reads every name of torch
def test_loader_of_torchdata_is_dealt_or_keeps_its_own_state() -> None:
    loaders = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    found = dealt(loaders.StatefulDataLoader(numbers(9), 4), Share(1, 2))
    next(iter(found))
    assert (own(found), found.state_dict()["num_delivered"]) == ([[1, 3], [5, 7], []], 1)
    stream = loaders.StatefulDataLoader(Stream(), 4)
    assert deal(stream, Share(), "train_dataloader") is stream


def test_own_batch_sampler_is_kept_on_one_process_and_its_order_seeded() -> None:
    sampler = RandomSampler(range(9))
    loader = DataLoader(numbers(9), batch_sampler=[*BatchSampler(SequentialSampler(range(9)), 4, False)])
    assert own(dealt(loader, Share())) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    shuffled = DataLoader(numbers(9), batch_sampler=BatchSampler(sampler, 4, False))
    assert own(dealt(shuffled, Share(), 2)) == own(dealt(shuffled, Share(), 2)) != own(dealt(shuffled, Share(), 3))


def test_training_loader_without_a_batch_is_refused() -> None:
    message = "yields no batch, because it has 3 samples in batches of 4: give batch_size=3 or less,"
    with pytest.raises(UserError, match=message):
        deal(DataLoader(numbers(3), batch_size=4, drop_last=True), Share(), "train_dataloader")


def test_stream_is_cut_by_shards_until_all_ranks_have_ended() -> None:
    """Seven samples in batches of 3 on two ranks, which are simulated one after the other."""
    counts: list[list[int]] = [[], []]
    found: list[list[Any]] = [[], []]
    noted: list[list[tuple[int, int]]] = [[], []]
    for turn in range(2):  # the first one records what each rank has, the second one sums it
        for rank in range(2):
            calls = iter(range(9))

            def total(number: int, rank: int = rank, calls: Any = calls, turn: int = turn) -> int:
                step = next(calls)
                if turn == 0:
                    counts[rank].append(number)
                    return int(step < 3)
                return counts[0][step] + counts[1][step]

            dictionary: dict[int, Any] = {}
            loader = deal(
                DataLoader(Sharded(), batch_size=3), Share(rank, 2), "train_dataloader", 1.0, dictionary, total
            )
            found[rank], noted[rank] = [], []
            for number, batch in enumerate(loader):
                found[rank].append(batch.tolist())
                noted[rank] += [(part.num_own, part.num_whole) for part in dictionary.values()] if number else []
            noted[rank] += [(part.num_own, part.num_whole) for part in dictionary.values()]
    assert found == [[[0, 2], [4], [6]], [[1], [3, 5], [3, 5]]]
    assert noted == [[(2, 3), (1, 3), (1, 1)], [(1, 3), (2, 3), (0, 1)]]


class Leaky(pl.LightningModule):
    """Notes in every way what it has seen, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(1))
        self.mean: Metric = MeanMetric()
        self.seen: list[int] = []
        self.last: deque[int] = deque(maxlen=2)
        self.sums = np.zeros(1)
        self.count = 0

    def forward(self, batch: list[Tensor]) -> Tensor:
        x = batch[0].float()[:, None, None].expand(-1, 1, 2)
        self.mean.update(x)
        self.seen.append(len(x))
        self.last.append(len(x))
        self.sums += len(x)
        self.count += len(x)
        torch.rand(1)
        output: Tensor = self.net(x + torch.rand(2)).mean()
        self.log("value", x.mean(), on_step=False, on_epoch=True, batch_size=len(x))
        self.log("other", self.mean, on_step=False, on_epoch=True)
        return output

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(module: pl.LightningModule, loader: Any, num_steps: int = 1, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        accumulate_grad_batches=num_steps,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"max_epochs": 2, "strategy": one_device(), **quiet, **options},  # type: ignore[arg-type]
    )
    trainer.fit(module, loader)
    return trainer


def test_logged_value_counts_by_the_samples_of_its_batch_whatever_the_first_tensor_is() -> None:
    """Batches of pictures of many sizes begin with a picture, and graphs with their nodes."""

    class Boxes(Leaky):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            numbers = batch[-1].float()
            self.log("mean", numbers.mean(), on_step=False, on_epoch=True)
            return self.net[0](numbers[:, None].expand(-1, 2)).mean()  # type: ignore[no-any-return]

    def with_picture(samples: list[tuple[Tensor]]) -> list[Tensor]:
        return [torch.zeros(7, 9), torch.cat([number[None] for number, *_ in samples])]

    for num_steps in (1, 3):
        loader = DataLoader(numbers(5), batch_size=4, collate_fn=with_picture)
        trainer = fit(Boxes(), loader, num_steps, max_epochs=1)
        assert trainer.callback_metrics["mean"] == 2


def test_sample_that_stands_in_leaves_no_trace() -> None:
    """Three samples in batches of 1 or 3, each in four micro-batches, of which some are empty."""
    states = []
    for batch_size, num_steps in ((1, 1), (1, 4), (3, 4)):
        torch.manual_seed(1)
        module, figures = Leaky(), []
        for max_epochs in (1, 2):  # the first step of all logs a value for the first time
            trainer = fit(module, DataLoader(numbers(3), batch_size=batch_size), num_steps, max_epochs=max_epochs)
            figures += [value.item() for value in trainer.callback_metrics.values()]
        assert figures == [1.0] * 4
        buffers = {name: value.tolist() for name, value in module.named_buffers() if "net" in name}
        noted = module.seen, module.count, list(module.last), module.sums.tolist()
        states.append((noted, buffers, float(torch.rand(()))))
    assert states[0] == states[1] == states[2]
    assert states[0][0] == ([1] * 9, 9, [1, 1], [9.0])


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_loaders_of_a_collection_are_dealt_each(mode: Any) -> None:
    class Pairs(Leaky):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.batches.append({name: part[0].tolist() if part else None for name, part in batch.items()})
            return self.net[0](torch.ones(2)).mean()

    loaders = {"a": DataLoader(numbers(6), batch_size=2), "b": DataLoader(numbers(4), batch_size=2)}
    module = Pairs()
    module.batches = []  # type: ignore[assignment]
    fit(module, CombinedLoader(loaders, mode), 2, max_epochs=1)  # type: ignore[arg-type]
    found: list[Any] = module.batches  # type: ignore[assignment]
    first = [{"a": [number], "b": [number]} for number in range(4)]
    rest = [[{"a": [4], "b": part} for part in (None, [0])], [{"a": [5], "b": part} for part in (None, [1])]]
    more = {"min_size": [], "max_size": [part[0] for part in rest], "max_size_cycle": [part[1] for part in rest]}
    assert found == first + more[mode]


def test_loaders_of_a_collection_whose_parts_have_different_shares_are_refused() -> None:
    loaders = {"a": DataLoader(numbers(6), batch_size=3), "b": DataLoader(numbers(4), batch_size=2)}

    class Pairs(Leaky):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch["a"])

    with pytest.raises(UserError, match=r"no weight is right: give each .* batch_size that 2 divides"):
        fit(Pairs(), CombinedLoader(loaders, "min_size"), 2)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_step_that_fetches_its_batches_itself_is_refused_with_micro_batches() -> None:
    class Fetching(Leaky):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            next(dataloader_iter)
            return self.net[0](torch.ones(2)).mean()

    fit(Fetching(), DataLoader(numbers(4), batch_size=2))
    with pytest.raises(UserError, match=r"training_step\(dataloader_iter\) hides the size of a batch"):
        fit(Fetching(), DataLoader(numbers(4), batch_size=2), 2)


def test_gradient_is_that_of_the_whole_batch_in_unequal_micro_batches() -> None:
    class Linear(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return (self.weight - batch[0].double()).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    found = []
    for num_steps in (1, 2, 3, 4, 9):
        module = Linear()
        trainer = fit(module, DataLoader(numbers(10), batch_size=7), num_steps)
        found.append(module.weight.item())
        assert trainer.global_step == 4
    assert found == pytest.approx([found[0]] * 5, abs=1e-12)


def test_datamodule_that_ignores_its_batch_size_is_refused() -> None:
    def fit_in_batches(planned: int | None) -> None:
        strategy = one_device()
        strategy.batch_size = planned
        fit(Leaky(), DataLoader(numbers(8), batch_size=2), strategy=strategy)

    for planned in (2, None):
        fit_in_batches(planned)
    with pytest.raises(UserError, match=r"^data.batch_size=4, but train_dataloader gives batches of 2: let the Data"):
        fit_in_batches(4)


def test_loader_of_one_ranks_part_of_a_batch_gives_whole_ones() -> None:
    """As of a DataModule that divides its batch size by the number of processes."""
    loader = DataLoader(numbers(10), batch_size=2)
    found = [own(dealt(loader, Share(rank, 2), batch_size=4)) for rank in range(2)]
    assert found == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]
    assert own(dealt(loader, Share(0, 2), batch_size=2)) == [[0], [2], [4], [6], [8]]


class Unreachable(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitems__(self, indices: list[int]) -> Any:
        raise ConnectionResetError("the store is gone")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_sample_that_cannot_be_read_is_named(num_workers: int) -> None:
    """A connection error of a sample is not taken for a lost worker."""
    loader = DataLoader(Unreachable(), batch_size=2, num_workers=num_workers)
    with pytest.raises(UserError, match=r"^sample 0 of the 4 .*ConnectionResetError: the store is gone \(test_data.py"):
        next(iter(dealt(loader, Share())))
    assert lost_worker(ConnectionResetError("[Errno 104] Connection reset by peer"), num_workers=1)
    assert not lost_worker(ConnectionResetError("the store is gone"))


@pytest.mark.parametrize(
    ("message", "is_printed"), [("DataLoader worker (pid 1) is killed by signal: Killed. ", False), ("another", True)]
)
def test_lost_worker_is_not_printed_where_torch_raises_it_in_a_destructor(
    message: str, is_printed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Destroyed:
        def __del__(self) -> None:
            raise RuntimeError(message)

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # restored at the end
    next(iter(deal(Digits(num_workers=1).train_dataloader(), Share(), "train_dataloader")))
    Destroyed()
    assert (message in capsys.readouterr().err) == is_printed


def test_prediction_in_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Predicting(Leaky):
        def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return batch[0]

    trainer = pl.Trainer(accelerator="cpu", strategy=one_device(), logger=False, enable_progress_bar=False)
    loader = DataLoader(numbers(3), batch_size=2)
    assert torch.cat(trainer.predict(Predicting(), loader)).tolist() == [0, 1, 2]  # type: ignore[arg-type]
    monkeypatch.setattr(pl.Trainer, "world_size", 2)
    with pytest.raises(UserError, match=r"trainer.predict would predict each sample in every process"):
        trainer.predict(Predicting(), loader)


class OfLabels:
    """A DataModule with two labels, of which one is rare."""

    def __init__(self) -> None:
        self.samples = {
            "train": SamplesInMemory(torch.zeros(9, 1), torch.tensor([0] * 5 + [1] * 4)),
            "val": SamplesInMemory(torch.zeros(0, 1), torch.tensor([], dtype=torch.long)),
        }
        self.spec = DataSpec("made", "classification", (1,), "float32", (0.0, 1.0), ("a", "b"), (0.0,), (1.0,))
        self.read_as = {"x": "numbers"}


def test_data_is_described_by_its_splits_labels_and_columns() -> None:
    found = DataDescription.of(OfLabels(), {})
    assert found.splits == {"train": 9, "val": 0}
    assert found.labels == {"a": {"train": 5, "val": 0}, "b": {"train": 4, "val": 0}}
    assert found.columns == {"x": "numbers"}
    assert found.rare == ["'b' has 4 in train"], "an empty split has no label"


def test_data_of_any_kind_is_described_by_its_sizes() -> None:
    dealt = deal(DataLoader(range(97), batch_size=8), Share(), "train_dataloader")  # type: ignore[arg-type]
    loaders = {"train": dealt, "val": DataLoader(range(33)), "test": [DataLoader(range(3))]}  # type: ignore[arg-type]
    assert DataDescription.of(object(), loaders).to_dict() == {"splits": {"train": 97, "val": 33}}


@pytest.mark.parametrize("labels", [[0, 1, 5], [0, -1, 1], [[0, 1], [1, 0], [1, 1]], [0.5, 1.0, 2.0]])
def test_numbers_that_are_no_labels_of_the_spec_are_not_counted(labels: list[Any]) -> None:
    data = OfLabels()
    data.samples = {"train": SamplesInMemory(torch.zeros(3, 1), torch.tensor(labels))}
    assert DataDescription.of(data, {}).to_dict() == {"splits": {"train": 3}, "columns": {"x": "numbers"}}


def test_samples_of_a_data_module_of_another_kind_are_left_to_its_loaders() -> None:
    data: Any = OfLabels()
    data.samples, data.read_as = {"train": TensorDataset(torch.zeros(3, 1))}, {}
    assert DataDescription.of(data, {"train": DataLoader(range(7))}).splits == {"train": 7}  # type: ignore[arg-type]
