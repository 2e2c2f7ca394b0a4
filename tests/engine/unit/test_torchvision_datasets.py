"""`data=torchvision`, from files that are written here: nothing is downloaded from the internet."""

import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from {{ cookiecutter.package_name }}.engine.data.torchvision_datasets import TorchvisionDataModule
from {{ cookiecutter.package_name }}.engine.errors import UserError
from downloads import NUM_TEST, digits, offer_cifar10, offer_mnist, served, write_mnist
from kornia.augmentation import RandomHorizontalFlip
from torchvision.datasets import CIFAR10, MNIST


def data(root: Path, **options: Any) -> TorchvisionDataModule:
    return TorchvisionDataModule(**{"name": "mnist", "root": str(root), "num_workers": 0, **options})


def test_test_split_is_that_of_the_files_and_validation_comes_from_training(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    datamodule = data(tmp_path, val_fraction=0.2)
    pictures, labels = (torch.from_numpy(values) for values in digits(400, 28))
    samples = datamodule.samples
    assert torch.equal(samples["test"].inputs, pictures[-NUM_TEST:, None])
    assert torch.equal(samples["test"].labels, labels[-NUM_TEST:].long())
    assert (len(samples["train"]), len(samples["val"])) == (240, 60)
    shares = [samples[split].labels.bincount(minlength=10) / len(samples[split]) for split in ("train", "val")]
    assert (shares[0] - shares[1]).abs().max() < 1 / 60, "each label in proportion"
    used = torch.cat([samples["train"].inputs, samples["val"].inputs]).flatten(1)
    assert sorted(used.tolist()) == sorted(pictures[:-NUM_TEST].flatten(1).tolist())
    for pixels, label in zip(samples["val"].inputs[:, 0], samples["val"].labels, strict=True):
        assert label in labels[(pictures == pixels).all(dim=(1, 2))]


def test_split_depends_on_its_own_seed_alone(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    first, other_seed, other_split = (
        data(tmp_path, **options).samples["val"].inputs for options in ({}, {"seed": 7}, {"split_seed": 7})
    )
    assert torch.equal(first, other_seed)
    assert not torch.equal(first, other_split)


def test_spec_describes_the_pictures(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    datamodule = data(tmp_path)
    spec, pixels = datamodule.spec, datamodule.samples["train"].inputs.double()
    assert (spec.input_shape, spec.input_dtype, spec.input_range) == ((1, 28, 28), "uint8", (0.0, 255.0))
    assert spec.labels == tuple(MNIST.classes)
    assert spec.mean == pytest.approx([pixels.mean().item()])
    assert spec.std == pytest.approx([pixels.std(correction=0).item()])
    assert "MNIST, 400 pictures of 28 x 28 pixels and 10 labels" in spec.description


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of a server of its files."""
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "offered").mkdir()
    with served(tmp_path / "offered") as address:
        yield tmp_path / "offered", address


def test_coloured_pictures_are_downloaded_and_unpacked(
    offered: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, labels = offer_cifar10(*offered, monkeypatch)
    datamodule = data(tmp_path / "root", name="cifar10")
    assert np.array_equal(datamodule.samples["test"].inputs.numpy(), pictures[300:])
    assert datamodule.samples["test"].labels.tolist() == labels[300:]
    assert len(datamodule.samples["train"]) + len(datamodule.samples["val"]) == 300
    assert datamodule.spec.input_shape == (3, 32, 32)
    assert datamodule.spec.labels == tuple(f"digit {number}" for number in range(10))
    inputs, _ = next(iter(datamodule.train_dataloader()))
    assert (inputs.shape, inputs.dtype, inputs.is_contiguous()) == ((64, 3, 32, 32), torch.uint8, True)


def test_one_downloads_and_the_others_wait(
    offered: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand in for processes, because each opens the lock file itself."""
    offer_mnist(*offered, monkeypatch)
    download, downloads = MNIST.download, []

    def counted(self: MNIST) -> None:
        if not self._check_exists():
            downloads.append(self)
            time.sleep(0.2)
        download(self)

    monkeypatch.setattr(MNIST, "download", counted)
    with ThreadPool(3) as pool:
        found = pool.map(lambda _: len(data(tmp_path / "root").samples["train"]), range(3))
    assert found == [270, 270, 270]
    assert len(downloads) == 1


def test_only_training_pictures_are_augmented(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    plain = data(tmp_path, augment={"flip": None})
    flipped = data(tmp_path, augment={"flip": RandomHorizontalFlip(p=1.0)})
    before, after = (next(iter(datamodule.train_dataloader()))[0] for datamodule in (plain, flipped))
    assert torch.equal(before.flip(-1), after)
    assert torch.equal(next(iter(flipped.val_dataloader()))[0], plain.samples["val"].inputs)


def test_only_augmentation_uses_worker_processes(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    plain = data(tmp_path, num_workers=None)
    augmented = data(tmp_path, num_workers=None, augment={"flip": RandomHorizontalFlip(p=0.5)})
    assert plain.train_dataloader().num_workers == 0
    assert augmented.train_dataloader().num_workers >= 1
    assert augmented.test_dataloader().num_workers == 0


def test_missing_connection_is_reported_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [f"{(tmp_path / 'nowhere').as_uri()}/"])
    sentence = r"data.name=mnist cannot be downloaded \(.*\): try again, or put its files into .*MNIST"
    with pytest.raises(UserError, match=sentence) as error:
        data(tmp_path / "root")
    assert "\n" not in str(error.value)


def test_missing_files_are_not_downloaded_without_permission(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not hold all files of data.name=fashion_mnist: give data.download=true"):
        data(tmp_path / "root", name="fashion_mnist", download=False)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("length", [0, 3, 5000])
def test_damaged_mnist_is_named(tmp_path: Path, length: int) -> None:
    file = write_mnist(tmp_path) / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"MNIST/raw holds damaged files \(.+\): remove it, to have them downloaded"):
        data(tmp_path)


def test_damaged_cifar10_is_named_and_downloaded_again(
    offered: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_cifar10(*offered, monkeypatch)
    undamaged = data(tmp_path / "root", name="cifar10")
    batch = tmp_path / "root" / CIFAR10.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cifar-10-batches-py holds damaged files"):
        data(tmp_path / "root", name="cifar10", download=False)
    again = data(tmp_path / "root", name="cifar10")
    assert torch.equal(again.samples["train"].inputs, undamaged.samples["train"].inputs)


def test_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file/root cannot be written to .*give another folder, or data.download=false"
    ):
        data(tmp_path / "file/root")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"val_fraction": 1.0}, "data.val_fraction=1.0 leave"),
        ({"val_fraction": 0.001}, "data.val_fraction=0.001 gives not one picture of each label"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"batch_size": 271}, "the largest size that works is 270"),
        ({"num_workers": -1}, "data.num_workers=-1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(UserError, match=sentence):
        data(tmp_path, **options).train_dataloader()
