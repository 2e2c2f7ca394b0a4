"""`data=image_folder`: listing, scanning, splitting and augmentation of picture files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kornia.augmentation import ColorJitter, RandomAffine, RandomHorizontalFlip
from PIL import Image

from {{ cookiecutter.package_name }}.data.digits import DigitsDataModule
from {{ cookiecutter.package_name }}.engine.data.augmentation import BATCHED, KorniaAugmentation
from {{ cookiecutter.package_name }}.engine.data.image_folder import ImageFolderDataModule, list_pictures
from {{ cookiecutter.package_name }}.engine.data.pixel_statistics import scan_pictures
from {{ cookiecutter.package_name }}.engine.data.samples import Augmented, as_fetched
from {{ cookiecutter.package_name }}.engine.distributed.dealing import Part, SeededFetch, seeded
from {{ cookiecutter.package_name }}.engine.errors import UserError


def data(root: Path, cache_dir: Path, **options: Any) -> ImageFolderDataModule:
    options = {"size": [12, 10], "channels": 1, "num_workers": 0, "batch_size": 8, **options}
    return ImageFolderDataModule(root=str(root), cache_dir=str(cache_dir), **options)


def names(datamodule: ImageFolderDataModule, split: str) -> list[str]:
    return [os.fsdecode(file) for file in datamodule.samples[split].files]


def write_pictures(root: Path, **pictures: int) -> Path:
    """Writes grey pictures, a number for each label; `__` in a name separates folders."""
    for label, number in pictures.items():
        folder = root.joinpath(*label.split("__"))
        folder.mkdir(parents=True)
        for index in range(number):
            Image.new("L", (8, 8), index).save(folder / f"{index}.png")
    return root


def test_each_label_is_split_in_proportion_and_every_picture_is_used_once(picture_folder: Path, tmp_path: Path) -> None:
    datamodule = data(picture_folder, tmp_path)
    assert datamodule.spec.labels == ("digit 0", "digit 1", "digit 2")
    for split, number in (("train", 28), ("val", 4), ("test", 8)):
        assert datamodule.samples[split].labels.bincount().tolist() == [number] * 3
    used = [name for split in ("train", "val", "test") for name in names(datamodule, split)]
    assert sorted(used) == sorted(map(str, picture_folder.rglob("*.*")))
    assert names(data(picture_folder, tmp_path, seed=7), "test") == names(datamodule, "test")
    assert names(data(picture_folder, tmp_path, split_seed=7), "test") != names(datamodule, "test")


def test_batches_are_raw_pixels_and_the_spec_describes_them(picture_folder: Path, tmp_path: Path) -> None:
    datamodule = data(picture_folder, tmp_path, channels=3)
    inputs, labels = next(iter(datamodule.train_dataloader()))
    assert (inputs.shape, inputs.dtype) == ((8, 3, 12, 10), torch.uint8)
    assert (labels.shape, labels.dtype) == ((8,), torch.int64)
    spec = datamodule.spec
    assert (spec.input_shape, spec.input_dtype, spec.input_range) == ((3, 12, 10), "uint8", (0.0, 255.0))
    everything, _ = datamodule.samples["train"].__getitems__(list(range(len(datamodule.samples["train"]))))
    assert spec.mean == pytest.approx(everything.double().mean(dim=(0, 2, 3)).tolist())
    assert spec.std == pytest.approx(everything.double().std(dim=(0, 2, 3), correction=0).tolist())


def test_worker_processes_fetch_the_same(picture_folder: Path, tmp_path: Path) -> None:
    augment = {"flip": RandomHorizontalFlip(p=0.5)}
    alone, shared = (data(picture_folder, tmp_path, augment=augment, num_workers=number) for number in (0, 2))
    pairs = zip(alone.train_dataloader(), shared.train_dataloader(), strict=True)
    assert all(torch.equal(mine, theirs) for (mine, _), (theirs, _) in pairs)


def test_given_split_is_used_and_a_missing_one_is_made(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "root", Train__a=10, Train__b=10, test__a=2, test__b=3)
    datamodule = data(root, tmp_path)
    assert {split: len(datamodule.samples[split]) for split in ("train", "val", "test")} == {
        "train": 18,
        "val": 2,
        "test": 5,
    }
    assert all("/test/" in name for name in names(datamodule, "test"))
    (root / "more").mkdir()
    with pytest.raises(UserError, match="lies beside the folders of the splits"):
        data(root, tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_lists_paths_labels_and_splits(separator: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, a=6)
    lines = ["Label,PATH,split", *(f'"cat, or dog {n % 2}",a/{n}.png,{"test" if n > 3 else "train"}' for n in range(6))]
    rows = [line.split(",") if n == 0 else [*line.rsplit(",", 2)] for n, line in enumerate(lines)]
    (tmp_path / "list.csv").write_text("\ufeff" + "\r\n".join(separator.join(row) for row in rows), encoding="utf-8")
    pictures = list_pictures(tmp_path / "list.csv")
    assert [(picture.name, picture.label, picture.split) for picture in pictures[:5]] == [
        (f"a/{n}.png", f"cat, or dog {n % 2}", "test" if n > 3 else "train") for n in range(5)
    ]
    assert all(picture.path.is_file() for picture in pictures)


def test_picture_that_cannot_be_read_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_pictures(tmp_path / "root", a=10, b=10)
    (root / "a/0.png").write_bytes(b"words")
    (root / "b/0.png").write_bytes((root / "b/0.png").read_bytes()[:40])
    (root / "b/notes.txt").write_text("no picture, and not meant as one")
    datamodule = data(root, tmp_path)
    assert sum(len(samples) for samples in datamodule.samples.values()) == 18
    assert "2 of 20 pictures that cannot be read: a/0.png (it is no picture, or damaged); b/0.png" in caplog.text


def test_bits_that_the_set_uses_are_found_by_the_scan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, shades = tmp_path / "root", np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(shades).save(root / label / f"{number}.tif", tiffinfo={262: int(label == "a")})
    datamodule = data(root, tmp_path, size=[8, 8])
    assert datamodule.spec.bit_depth == datamodule.spec.as_input().bit_depth == 12
    assert datamodule.spec.mean[0] == pytest.approx(127.5, abs=1)
    assert datamodule.samples["train"].__getitems__([0])[0].max() == 252
    assert "of more than 8 bits use 12: 4,095 is white" in caplog.text
    assert "6 pictures: its value 0 is white: b/0.tif" in caplog.text
    assert data(root, tmp_path, size=[8, 8]).spec == datamodule.spec, "from the cache"


def test_pictures_are_found_by_their_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, elsewhere = write_pictures(tmp_path / "root", a=6), write_pictures(tmp_path / "elsewhere", b=3, more=3)
    (root / "b").symlink_to(elsewhere / "b", target_is_directory=True)
    (elsewhere / "b/more").symlink_to(elsewhere / "more", target_is_directory=True)
    (elsewhere / "b/again").symlink_to(elsewhere / "b", target_is_directory=True)
    (root / "a/0.png").rename(root / "a/0")
    (root / "a/1.png").rename(root / "a/1.jfif")
    Image.new("L", (8, 8)).save(root / "a/6.avif")
    (root / "a/.hidden").write_text("")
    for number in range(7):
        (root / f"a/{number}.txt").write_text("no picture")
    assert [picture.label for picture in list_pictures(root)] == ["a"] * 7 + ["b"] * 6
    assert "passed over 7 files: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ..." in caplog.text


def test_labels_of_a_list_have_one_form(tmp_path: Path) -> None:
    write_pictures(tmp_path, a=6)
    lines = [f"a/{number}.png,{label}" for number, label in enumerate(["1", "1.0", " 2", "2 ", "1", "2.0"])]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    assert [picture.label for picture in list_pictures(tmp_path / "list.csv")] == ["1", "1", "2", "2", "1", "2"]


@pytest.mark.parametrize(
    ("pictures", "options", "sentence"),
    [
        ({}, {}, "holds no picture"),
        ({"a": 5}, {}, "holds one label, 'a'"),
        ({"a": 5, "b": 0}, {}, "b holds no picture"),
        ({"a": 5, "b": 2}, {}, "the label 'b' has 2 pictures, too few to split"),
        ({"a": 5, "b": 5}, {"batch_size": 9}, "the largest size that works is 6"),
        ({"a": 5, "b": 5}, {"size": [8]}, "is no size of a picture"),
        ({"train__a": 5, "train__b": 5, "test__c": 1}, {}, "'c' is in test, but no training picture shows it"),
    ],
)
def test_unusable_data_set_is_refused(
    pictures: dict[str, int], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError, match=sentence):
        data(write_pictures(tmp_path / "root", **pictures), tmp_path, **options).train_dataloader()


def test_quoted_name_may_span_lines(tmp_path: Path) -> None:
    text = 'path,label\n"a\n0.png",x\na/1.png,y\n'
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    assert [picture.name for picture in list_pictures(tmp_path / "list.csv")] == ["a\n0.png", "a/1.png"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,label\na/0.png,x\n", "needs the columns path and label.*it has: file, label"),
        ("path,label\na/0.png,x\na/1.png,\n", "line 3: the path or the label is missing"),
        ("path,label,split\na/0.png,x,later\n", "line 2: split='later' is none of train, val and test"),
        ("path,label\na/0.png,\udcff\n", "is no CSV in UTF-8"),
    ],
)
def test_csv_that_cannot_be_used_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=sentence):
        list_pictures(tmp_path / "list.csv")


def test_files_are_scanned_once_until_they_change(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "root", a=3)
    files = sorted((root / "a").iterdir())
    first = scan_pictures(files, (1, 8, 8), tmp_path / "cache")
    assert first.sums.tolist() == [[0], [64], [128]]
    stamp = files[2].stat()
    spoiled = files[2].read_bytes()[::-1]
    files[2].write_bytes(spoiled)
    os.utime(files[2], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert scan_pictures(files, (1, 8, 8), tmp_path / "cache").reasons.tolist() == ["", "", ""]  # cached
    os.utime(files[2])
    assert scan_pictures(files, (1, 8, 8), tmp_path / "cache").reasons[2] != ""


def test_augmentation_depends_on_seed_epoch_and_sample_alone(picture_folder: Path, tmp_path: Path) -> None:
    samples = data(picture_folder, tmp_path).samples["train"]
    augmented = Augmented(samples, KorniaAugmentation([RandomAffine(degrees=30.0, translate=(0.1, 0.1))]))
    fetch = SeededFetch(augmented, as_fetched, seed=3)  # type: ignore[arg-type]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    inputs = torch.cat([fetch.__getitems__(Part(epoch, rows, 1, 1))[1][0] for epoch, rows in ((0, [5, 6]), (1, [5]))])
    assert torch.equal(torch.get_rng_state(), state), "the generator that dropout uses has changed"
    torch.manual_seed(2)
    again = torch.cat([fetch.__getitems__(Part(epoch, [5], 1, 1))[1][0] for epoch in (1, 0)])
    assert torch.equal(again[1], inputs[0])
    assert torch.equal(again[0], inputs[2])
    assert not torch.equal(inputs[0], inputs[2])
    assert (inputs.dtype, inputs.shape[1:]) == (torch.uint8, (1, 12, 10))


def test_augmentation_that_changes_the_shape_is_refused() -> None:
    smaller = KorniaAugmentation([torch.nn.MaxPool2d(2)])
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) of a picture of \(1, 8, 8\)"):
        smaller(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), [seeded(0)])


@pytest.mark.parametrize("kind", [*BATCHED, ColorJitter], ids=lambda kind: kind.__name__)
def test_augmentation_is_the_same_alone_and_in_a_batch(kind: type[torch.nn.Module]) -> None:
    options = {
        "ColorJitter": {"brightness": 0.4, "hue": 0.4},
        "RandomAffine": {"degrees": 30.0, "shear": 5.0},
        "RandomBrightness": {"brightness": (0.5, 1.5)},
        "RandomContrast": {"contrast": (0.5, 1.5)},
        "RandomRotation": {"degrees": 30.0},
    }
    pictures = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8, generator=seeded(1))
    augment = KorniaAugmentation([kind(p=0.7, **options.get(kind.__name__, {}))])
    together = augment(pictures, [seeded(0, index) for index in range(40)])
    alone = [augment(picture[None], [seeded(0, index)]) for index, picture in enumerate(pictures)]
    assert torch.equal(together, torch.cat(alone))
    changed = (together != pictures).flatten(1).any(dim=1).sum().item()
    assert 15 < changed < 40, "each is changed at random, independently"


def test_transform_with_probability_0_changes_nothing() -> None:
    picture = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(KorniaAugmentation([RandomHorizontalFlip(p=0.0)])(picture, [seeded(0)]), picture)


def test_labels_of_the_training_split_are_counted(picture_folder: Path, tmp_path: Path) -> None:
    pictures = ImageFolderDataModule(str(picture_folder), str(tmp_path), size=[8, 8], channels=1, batch_size=8)
    for datamodule in (DigitsDataModule(), pictures):
        counted = datamodule.samples["train"].labels.bincount()
        assert datamodule.spec.label_counts == tuple(counted.tolist())
        assert len(datamodule.spec.label_counts) == datamodule.spec.num_outputs


def test_picture_may_have_any_number_of_labels(picture_folder: Path, tmp_path: Path) -> None:
    files = sorted(picture_folder.rglob("*.png"))
    lines = ["path;label"]
    for number, path in enumerate(files):
        labels = [name for name, has in (("round", number % 2), ("tall", number % 3 == 0)) if has]
        # The split goes by the names in the list: not by where pytest keeps its files this time.
        lines.append(f"{os.path.relpath(path, tmp_path)};{'|'.join(labels)}")
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    options = {"size": [8, 8], "channels": 1, "batch_size": 8, "val_fraction": 0.2}
    data = ImageFolderDataModule(str(tmp_path / "list.csv"), str(tmp_path), task="multilabel", **options)
    assert (data.spec.task, data.spec.labels) == ("multilabel", ("round", "tall"))
    truth = data.samples["train"].labels
    assert truth.shape == (len(data.samples["train"]), 2)
    assert data.spec.label_counts == tuple(truth.sum(0).tolist())
    for part in data.samples.values():
        shares = part.labels.double().mean(0)
        assert shares[0] == pytest.approx(0.5, abs=0.1)
        assert shares[1] == pytest.approx(1 / 3, abs=0.1)
    with pytest.raises(UserError, match="is a folder: several labels of a picture stand in a CSV"):
        ImageFolderDataModule(str(picture_folder), str(tmp_path), task="multilabel", **options)
