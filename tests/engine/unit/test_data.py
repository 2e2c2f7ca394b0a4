"""Samplers and loaders: which sample goes to which rank, resumption and augmentation."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from digits import NUM_TRAIN, Digits, rolled

from {{ cookiecutter.package_name }}.engine.data.samples import Loader
from {{ cookiecutter.package_name }}.engine.distributed import samplers
from {{ cookiecutter.package_name }}.engine.errors import UserError, lost_worker


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_optimiser_step_sees_the_same_samples_however_they_are_split(world_size: int, num_steps: int) -> None:
    alone = list(samplers.TrainingBatchSampler(100, 24, seed=5))
    ranks = [
        list(samplers.TrainingBatchSampler(100, 24, seed=5, rank=rank, world_size=world_size, num_steps=num_steps))
        for rank in range(world_size)
    ]
    assert {len(part) for parts in ranks for part in parts} == {24 // (world_size * num_steps)}
    for step, batch in enumerate(alone):
        steps = slice(step * num_steps, (step + 1) * num_steps)
        assert sorted(batch) == sorted(index for parts in ranks for part in parts[steps] for index in part)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = samplers.TrainingBatchSampler(100, 12, seed=5, rank=0, world_size=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(samplers.TrainingBatchSampler(100, 12, seed=6, rank=0, world_size=1)) != first
    assert len(first) == 100 // 12
    assert len(np.unique(first)) == 96


def test_overfitting_sees_the_same_batches_in_every_epoch() -> None:
    sampler = samplers.TrainingBatchSampler(100, 12, seed=5, rank=0, world_size=1, reshuffle=False)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first


def test_lightning_finds_the_sampler_to_set_the_epoch_on() -> None:
    sampler = samplers.TrainingBatchSampler(100, 12, seed=5, rank=0, world_size=1)
    assert sampler.sampler is sampler


@pytest.mark.parametrize("num_samples", [1, 5, 359, 360])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_every_sample_once(num_samples: int, world_size: int) -> None:
    ranks = [list(samplers.EvaluationBatchSampler(num_samples, 64, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(index for batches in ranks for batch in batches for index in batch) == list(range(num_samples))


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ((64, 1, None), "batch 64 = 1 device x 64"),
        ((128, 2, 32), "batch 128 = 2 devices x 2 steps x 32"),
        ((64, 2, 500), "batch 64 = 2 devices x 32"),
        ((64, 2, "auto"), "batch 64 = 2 devices x 32, or as much of it at once as fits"),
    ],
)
def test_split_of_a_batch_as_text(split: tuple[int, int, int | str | None], text: str) -> None:
    assert str(samplers.BatchSplit.of(*split)) == text


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ((128, 3, None), "data.batch_size=128 does not divide over 3 devices: the nearest that does is 126 or 129."),
        ((2, 3, None), "the nearest that does is 3."),
        ((64, 1, 48), "data.micro_batch_size=48 does not divide the 64 samples of a device: .* 32 or 64."),
        ((64, 1, 0), "data.micro_batch_size=0 does not divide the 64 samples of a device: .* 1."),
    ],
)
def test_split_with_a_remainder_is_refused(split: tuple[int, int, int | None], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        samplers.BatchSplit.of(*split)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"augment": rolled}])
def test_loader_resumes_within_an_epoch(options: dict[str, Any]) -> None:
    loader = Digits(**options).train_dataloader()
    loader.batch_sampler.sampler.set_epoch(3)
    expected = [batch[0] for batch in loader]
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    state = loader.state_dict()
    assert (state["epoch"], state["num_delivered"]) == (3, 5), "batches that workers fetched ahead do not count"
    resumed = Digits(**options).train_dataloader()
    resumed.load_state_dict(state)
    resumed.batch_sampler.sampler.set_epoch(3)
    rest = [batch[0] for batch in resumed]
    assert len(rest) == len(expected) - 5
    assert all(torch.equal(found, sought) for found, sought in zip(rest, expected[5:], strict=True))
    assert len(list(resumed)) == len(expected), "the next pass is complete"


def test_loader_begins_the_next_epoch_after_a_complete_one() -> None:
    loader = Digits().train_dataloader()
    loader.load_state_dict({**loader.state_dict(), "epoch": 3, "num_delivered": len(loader)})
    loader.batch_sampler.sampler.set_epoch(4)
    assert len(list(loader)) == len(loader)


def test_other_batches_are_refused_within_an_epoch_and_accepted_after_it() -> None:
    loader = Digits(batch_size=64).train_dataloader()
    for num_delivered in (5, len(loader)):
        state = {**loader.state_dict(), "num_delivered": num_delivered}
        loader.load_state_dict(state)
        other = Digits(batch_size=32).train_dataloader()
        if num_delivered == 5:
            with pytest.raises(UserError, match=r"in the middle of an epoch with .*batch_size=64.* go on with .*=32"):
                other.load_state_dict(state)
        else:
            other.load_state_dict(state)


def test_augmentation_of_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    def changed(epoch: int, seed: int = 1, rank: int = 0, world_size: int = 1) -> dict[int, torch.Tensor]:
        samples = Digits(seed=seed, augment=rolled).train_dataloader().dataset
        sampler = samplers.TrainingBatchSampler(NUM_TRAIN, 64, seed=9, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        batches = [(batch, samples.__getitems__(batch)[0]) for batch in samplers.WithEpoch(sampler)]
        return {index: x for batch, inputs in batches for (_, index), x in zip(batch, inputs, strict=True)}

    samples = Digits(augment=rolled).train_dataloader().dataset
    samples.samples.inputs[:50] = samples.samples.inputs[0]
    alike = samples.__getitems__([(1, index) for index in range(50)])[0]
    assert len(alike.unique(dim=0)) > 10, "the same picture at other indices is moved differently"

    alone, again, other_seed = changed(1), changed(2), changed(1, seed=2)
    second_rank = changed(1, rank=1, world_size=2)
    assert all(torch.equal(alone[index], second_rank[index]) for index in second_rank)
    common = alone.keys() & again.keys()
    assert sum(torch.equal(alone[index], again[index]) for index in common) < len(common) / 5
    assert sum(torch.equal(alone[index], other_seed[index]) for index in alone) < len(alone) / 5


class Unreachable(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitems__(self, indices: list[int]) -> Any:
        raise ConnectionResetError("the store is gone")


def test_connection_error_of_a_sample_is_not_taken_for_a_lost_worker() -> None:
    with pytest.raises(UserError, match=r"sample 0 of the 4 .*ConnectionResetError: the store is gone"):
        next(iter(Loader(Unreachable(), batch_sampler=[[0, 1]], num_workers=1)))
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
    next(iter(Loader(Digits().samples["val"], batch_sampler=[[0, 1]], num_workers=1)))
    Destroyed()
    assert (message in capsys.readouterr().err) == is_printed
