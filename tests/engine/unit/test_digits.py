"""`data=digits`: the split, the pictures and their augmentation."""

import pytest
import torch

from {{ cookiecutter.package_name }}.data.digits import DigitsDataModule, shifted
from {{ cookiecutter.package_name }}.engine.data.splits import SPLITS
from {{ cookiecutter.package_name }}.engine.distributed.dealing import seeded
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.spec import DataSpec


def test_every_digit_is_in_exactly_one_split_in_its_proportion() -> None:
    samples = DigitsDataModule().samples
    assert sum(len(samples[split]) for split in SPLITS) == 1797
    for split in SPLITS:
        shares = torch.bincount(samples[split].labels, minlength=10) / len(samples[split])
        assert torch.all((shares - 0.1).abs() < 0.01)
    pictures = sorted(sample.tobytes() for split in SPLITS for sample in samples[split].inputs.numpy())
    again = DigitsDataModule(split_seed=7).samples
    assert pictures == sorted(sample.tobytes() for split in SPLITS for sample in again[split].inputs.numpy())


def test_training_seed_moves_no_sample_between_splits() -> None:
    first, second = DigitsDataModule(seed=1), DigitsDataModule(seed=2)
    assert torch.equal(first.samples["test"].inputs, second.samples["test"].inputs)
    assert not torch.equal(first.samples["test"].inputs, DigitsDataModule(split_seed=1).samples["test"].inputs)


def test_spec_describes_the_samples_and_is_restored_from_plain_data() -> None:
    datamodule = DigitsDataModule()
    inputs = datamodule.samples["train"].inputs
    spec = datamodule.spec
    assert (spec.input_shape, spec.input_dtype) == (tuple(inputs.shape[1:]), str(inputs.dtype).removeprefix("torch."))
    assert spec.input_range == (inputs.min().item(), inputs.max().item())
    assert spec.mean[0] == pytest.approx(inputs.double().mean().item())
    assert spec.std[0] == pytest.approx(inputs.double().std(correction=0).item())
    assert DataSpec.from_dict(spec.to_dict()) == spec


def test_loader_yields_batches_of_raw_pixels() -> None:
    inputs, labels = next(iter(DigitsDataModule(batch_size=32).train_dataloader()))
    assert (inputs.shape, inputs.dtype) == ((32, 1, 8, 8), torch.uint8)
    assert (labels.shape, labels.dtype) == ((32,), torch.int64)


def test_shifted_picture_keeps_its_size_and_loses_pixels_at_the_edge() -> None:
    picture = torch.arange(1, 17, dtype=torch.uint8).view(1, 4, 4)
    moved = {tuple(shifted(picture, [seeded(draw)], most=1).flatten().tolist()) for draw in range(50)}
    assert len(moved) == 9, "three positions along each axis"
    assert tuple(picture.flatten().tolist()) in moved
    assert (0, 0, 0, 0, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11) in moved


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"max_shift": 9}, "data.max_shift=9 pixels"),
        ({"batch_size": 5000}, "largest size that works is 1257"),
        ({"val_fraction": 0.0}, "leave a split empty"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave a split empty"),
    ],
)
def test_impossible_data_is_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DigitsDataModule(**options).train_dataloader()
