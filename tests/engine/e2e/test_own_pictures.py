"""A folder of pictures, from the first command to predictions by the exported bundle."""

import csv
import shutil
from pathlib import Path

import pytest
from conftest import EXACT, TWO_PROCESSES, assert_same_result, run_command, trained

SMALL = ("data=image_folder", "data.size=[16,16]", "data.channels=1", "data.batch_size=16", "trainer=cpu")


@pytest.fixture(scope="module")
def pictures(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(picture_folder, tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def of_own_pictures(pictures: Path) -> Path:
    return trained(pictures.parent, *SMALL, "data.root=pictures", "trainer.max_epochs=8", "data.augment.flip=null")


def test_folder_becomes_a_bundle_that_predicts(of_own_pictures: Path, pictures: Path, tmp_path: Path) -> None:
    checkpoint = of_own_pictures / "checkpoints/best.ckpt"
    assert "test/acc" in run_command("evaluate", f"ckpt_path={checkpoint}", cwd=tmp_path).stdout
    run_command("export", f"ckpt_path={checkpoint}", "formats=[onnx]", cwd=tmp_path)
    run_command("predict", f"input='{pictures}'", "bundle=latest", "output=found.csv", cwd=tmp_path)
    with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    assert sum(Path(row["file"]).parent.name == row["label"] for row in rows) > 100


@pytest.mark.slow
def test_split_of_a_folder_that_has_changed_is_refused(of_own_pictures: Path, pictures: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(pictures, tmp_path / "changed")
    shutil.copy(changed / "digit 0/00.png", changed / "digit 0/another.png")
    shutil.move(pictures, tmp_path / "kept")
    shutil.move(changed, pictures)
    try:
        checkpoint = of_own_pictures / "checkpoints/best.ckpt"
        refused = run_command("evaluate", f"ckpt_path={checkpoint}", cwd=tmp_path, check=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: the files of data.root are others than in training")
        kept = run_command("evaluate", f"ckpt_path={checkpoint}", f"data.root={tmp_path / 'kept'}", cwd=tmp_path)
        assert "test/acc" in kept.stdout
    finally:
        shutil.rmtree(pictures)
        shutil.move(tmp_path / "kept", pictures)


@pytest.mark.slow
def test_strategies_agree_on_augmented_pictures(pictures: Path, tmp_path: Path) -> None:
    options = (*SMALL, *EXACT, f"data.root={pictures}")
    runs = {name: tmp_path / name for name in ("single", "ddp")}
    for run in runs.values():
        run.mkdir()
    single = trained(runs["single"], *options, "data.num_workers=0")
    assert_same_result(trained(runs["ddp"], *options, *TWO_PROCESSES, "data.num_workers=1"), single)


def test_missing_folder_gets_one_sentence(tmp_path: Path) -> None:
    refused = run_command("train", "data=image_folder", "data.root=nowhere", "trainer=cpu", cwd=tmp_path, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "data.root=nowhere does not exist" in refused.stderr
    assert not (tmp_path / "logs/train/runs").exists() or not list((tmp_path / "logs/train/runs").iterdir())
