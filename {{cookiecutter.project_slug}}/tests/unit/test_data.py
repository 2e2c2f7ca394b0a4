"""The digits, their split, and which sample goes to which rank."""

import numpy as np
import pytest
import torch

from {{ cookiecutter.package_name }}.data.digits import SPLITS, DigitsDataModule
from {{ cookiecutter.package_name }}.data.spec import DataSpec
from {{ cookiecutter.package_name }}.refusal import Refusal
from {{ cookiecutter.package_name }}.strategies import samplers


def test_every_digit_is_in_exactly_one_split_in_its_proportion() -> None:
    samples = DigitsDataModule().samples
    assert sum(len(samples[split]) for split in SPLITS) == 1797
    for split in SPLITS:
        shares = torch.bincount(samples[split].labels, minlength=10) / len(samples[split])
        assert torch.all((shares - 0.1).abs() < 0.01)
    whole = sorted(sample.tobytes() for split in SPLITS for sample in samples[split].inputs.numpy())
    again = DigitsDataModule(split_seed=7).samples
    assert whole == sorted(sample.tobytes() for split in SPLITS for sample in again[split].inputs.numpy())


def test_the_training_seed_moves_no_sample_between_splits() -> None:
    first, second = DigitsDataModule(seed=1), DigitsDataModule(seed=2)
    assert torch.equal(first.samples["test"].inputs, second.samples["test"].inputs)
    assert not torch.equal(first.samples["test"].inputs, DigitsDataModule(split_seed=1).samples["test"].inputs)


def test_spec_describes_the_samples_and_survives_plain_data() -> None:
    datamodule = DigitsDataModule()
    inputs = datamodule.samples["train"].inputs
    spec = datamodule.spec
    assert (spec.input_shape, spec.input_dtype) == (tuple(inputs.shape[1:]), str(inputs.dtype).removeprefix("torch."))
    assert spec.input_range == (inputs.min().item(), inputs.max().item())
    assert spec.mean[0] == pytest.approx(inputs.double().mean().item())
    assert spec.std[0] == pytest.approx(inputs.double().std(correction=0).item())
    assert DataSpec.from_dict(spec.to_dict()) == spec


def test_loader_yields_whole_batches_of_raw_pixels() -> None:
    inputs, labels = next(iter(DigitsDataModule(batch_size=32).train_dataloader()))
    assert (inputs.shape, inputs.dtype) == ((32, 1, 8, 8), torch.uint8)
    assert (labels.shape, labels.dtype) == ((32,), torch.int64)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_step_sees_the_same_samples_however_many_processes(world_size: int) -> None:
    alone = list(samplers.TrainingBatchSampler(100, 12, seed=5, rank=0, world_size=1))
    ranks = [
        samplers.TrainingBatchSampler(100, 12, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert sorted(batch) == sorted(index for part in parts for index in part)
        assert len({len(part) for part in parts}) == 1


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


def test_batch_that_does_not_divide_is_refused_with_the_nearest_that_do() -> None:
    assert samplers.per_process(128, 4) == 32
    with pytest.raises(Refusal, match="126 or 129"):
        samplers.per_process(128, 3)
    with pytest.raises(Refusal, match="nearest that does is 3"):
        samplers.per_process(2, 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"batch_size": 5000}, "largest size that works is 1257"),
        ({"val_fraction": 0.0}, "leave a split empty"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave a split empty"),
    ],
)
def test_impossible_data_is_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        DigitsDataModule(**options)
