"""A checkpoint is plain data, describes itself, and runs no foreign code."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.runs.run_record import find_checkpoint
from {{ cookiecutter.package_name }}.engine.training import checkpoints


def read(path: Path) -> dict[str, Any]:
    contents = torch.load(path, weights_only=True)
    assert isinstance(contents, dict)
    return contents


def write(contents: dict[str, Any], path: Path) -> Path:
    torch.save(contents, path)
    return path


def test_best_and_last_load_with_weights_only(run_dir: Path) -> None:
    for name in ("best", "last"):
        contents = read(run_dir / f"checkpoints/{name}.ckpt")
        assert contents["project"]["package"] == package.__name__
        assert contents["project"]["config"]["model"]["net"]["widths"]


def test_model_and_data_come_back_without_typing_anything(best_checkpoint: Path) -> None:
    checkpoint = checkpoints.load(best_checkpoint)
    datamodule = checkpoint.datamodule(overrides={"batch_size": 100})
    assert (datamodule.batch_size, datamodule.spec) == (100, checkpoint.spec)
    model, trained = checkpoint.model().state_dict(), read(best_checkpoint)["state_dict"]
    assert all(torch.equal(model[name], trained[name]) for name in trained)


def test_module_takes_what_it_has_added_to_its_checkpoint(
    best_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = write(read(best_checkpoint) | {"mean": 5.0}, tmp_path / "trained.ckpt")
    found = []
    kind = type(checkpoints.load(best_checkpoint).model())
    monkeypatch.setattr(kind, "on_load_checkpoint", lambda module, checkpoint: found.append(checkpoint["mean"]))
    checkpoints.load(contents).model()
    assert found == [5.0]
    with pytest.raises(UserError, match="does not hold 'mean'"):
        checkpoints.load(best_checkpoint).model()


def test_model_comes_back_without_the_optimizer_that_trained_it(best_checkpoint: Path, tmp_path: Path) -> None:
    contents = read(best_checkpoint)
    contents["project"]["config"]["model"]["optimizer"]["lr"] = -1  # no optimizer takes it
    model = checkpoints.load(write(contents, tmp_path / "trained.ckpt")).model()
    with pytest.raises(ValueError, match="learning rate"):
        model.configure_optimizers()


@pytest.mark.skipif(sys.platform != "linux", reason="not run: only Linux tells which files are mapped")
def test_checkpoint_is_mapped_so_that_what_is_not_used_is_not_read(best_checkpoint: Path) -> None:
    checkpoint = checkpoints.load(best_checkpoint)
    assert str(best_checkpoint) in Path("/proc/self/maps").read_text(encoding="utf-8")
    del checkpoint
    assert str(best_checkpoint) not in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", [{"split_seed": 7}, {"test_fraction": 0.3}, {"val_fraction": 0.2}])
def test_another_split_is_refused(best_checkpoint: Path, option: dict[str, float]) -> None:
    checkpoint = checkpoints.load(best_checkpoint)
    checkpoint.datamodule({"split_seed": checkpoint.config["data"]["split_seed"]})
    with pytest.raises(UserError, match="would test on samples that the model was trained on"):
        checkpoint.datamodule(option)


def test_missing_truncated_and_foreign_files_are_refused(best_checkpoint: Path, tmp_path: Path) -> None:
    whole = best_checkpoint.read_bytes()
    truncated, empty = tmp_path / "truncated.ckpt", tmp_path / "empty.ckpt"
    truncated.write_bytes(whole[: len(whole) // 2])
    empty.write_bytes(b"")
    foreign = write({"state_dict": {}, "epoch": 1}, tmp_path / "foreign.ckpt")
    project = read(best_checkpoint)["project"]
    unversioned = {name: value for name, value in project.items() if name != "format_version"}
    other = write(read(best_checkpoint) | {"project": {"package": "other"}}, tmp_path / "other.ckpt")
    old = write(read(best_checkpoint) | {"project": unversioned}, tmp_path / "old.ckpt")
    new = write(read(best_checkpoint) | {"project": {**project, "format_version": 2}}, tmp_path / "new.ckpt")
    for path, sentence in (
        (tmp_path / "missing.ckpt", "does not exist"),
        (truncated, "cannot be read"),
        (empty, "cannot be read"),
        (foreign, f"was not written by {package.__name__}"),
        (other, f"was not written by {package.__name__}"),
        (old, "was written by version 0.9 of the template, which was never released: train again"),
        (new, r"format version 2, this project reads 1\): update the project"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            checkpoints.load(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


class RunsACommand:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PROOF"],)


def test_pickled_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "proof"
    monkeypatch.setenv("PROOF", str(proof))
    path = tmp_path / "code.ckpt"
    torch.save({"state_dict": RunsACommand()}, path, pickle_module=pickle)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.load(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the file does what it says: the test above could fail
    assert proof.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "torch.hub.load",
        f"{package.__name__}.engine.runs.run_record.subprocess.run",
        "torch.no_such_class",
    ],
)
def test_target_that_is_no_trusted_class_is_refused(target: str, best_checkpoint: Path, tmp_path: Path) -> None:
    contents = read(best_checkpoint)
    contents["project"]["config"]["model"]["net"]["_target_"] = target
    with pytest.raises(UserError, match=f"_target_={target}"):
        checkpoints.load(write(contents, tmp_path / "spoiled.ckpt"))


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("net:\n  _target_: safetensors.torch.load", "safetensors.SafetensorError"),
        ('net:\n  _target_: "safetensors.SafetensorError" # mine', "safetensors.SafetensorError"),
        ("net: {lr: 1, _target_: safetensors.SafetensorError}", "safetensors.SafetensorError"),
        ("_target_: safetensors.torch.load", "safetensors.torch.load"),
    ],
)
def test_what_a_file_of_configs_names_is_trusted_and_the_classes_of_its_package(
    line: str, target: str, best_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of the standard library, whose classes run commands."""
    contents = read(best_checkpoint)
    section = contents["project"]["config"]["model"]
    section["net"] = {"_target_": target}
    path = write(contents, tmp_path / "named.ckpt")
    with pytest.raises(UserError, match=r"no class of .* could run foreign code: name it in a file of configs/"):
        checkpoints.load(path)
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "configs/model/mine.yaml").write_text(
        f"# _target_: pandas.DataFrame\n{line}\nother:\n  _target_: subprocess.Popen\n", encoding="utf-8"
    )
    monkeypatch.setattr(checkpoints, "CONFIG_DIRS", [tmp_path / "configs"])
    checkpoints._named_targets.cache_clear()
    try:
        assert checkpoints.trusted_packages() == (*checkpoints.TRUSTED, "safetensors")
        checkpoints.load(path)
        for other in ("subprocess.Popen", "safetensors.torch.save"):
            section["net"]["_target_"] = other
            with pytest.raises(UserError, match=rf"names _target_={other}, which is no class of"):
                checkpoints.load(write(contents, path))
    finally:
        checkpoints._named_targets.cache_clear()


def test_interpolation_in_a_checkpoint_is_refused(best_checkpoint: Path, tmp_path: Path) -> None:
    contents = read(best_checkpoint)
    contents["project"]["config"]["model"]["net"] = "$" + "{oc.create:{_target_:torch.hub.load,_args_:[x]}}"
    with pytest.raises(UserError, match="holds the interpolation"):
        checkpoints.load(write(contents, tmp_path / "spoiled.ckpt"))


def test_network_that_was_changed_since_is_refused(best_checkpoint: Path, tmp_path: Path) -> None:
    contents = read(best_checkpoint)
    contents["project"]["config"]["model"]["net"]["widths"][-1] = 32
    checkpoint = checkpoints.load(write(contents, tmp_path / "other.ckpt"))
    with pytest.raises(UserError, match=r"does not fit the network as it is now: .*size mismatch"):
        checkpoint.model()


def test_latest_is_the_run_that_was_trained_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=f"python -m {package.__name__} train"):
        find_checkpoint("latest", tmp_path)
    places = ["runs/2026-01-02", "multiruns/2026-01-01/0", "runs/2026-01-03"]
    for age, place in zip((30, 10, 20), places, strict=True):
        path = tmp_path / "train" / place / "checkpoints/best.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    caplog.set_level("INFO")
    found = find_checkpoint("latest", tmp_path)
    assert found == tmp_path / "train/multiruns/2026-01-01/0/checkpoints/best.ckpt"
    assert str(found) in caplog.text
