"""`benchmark bundle=`: the figures, and the bundle that they are added to."""

import getpass
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_ends_by_interruption, run_command, started, wait_for

from {{ cookiecutter.package_name }}.engine.benchmark.bundles import EAGER, to_rows
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.export.bundle import add_to
from {{ cookiecutter.package_name }}.engine.export.verify import verify
from {{ cookiecutter.package_name }}.engine.inference.runtime import find_bundle, read_manifest

SHORT = ("seconds=0.01", "num_rounds=2")


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """Returns a copy of the bundle in `artifacts/`, which a test may change."""
    shutil.copytree(bundle.parents[1], tmp_path / "artifacts", ignore=shutil.ignore_patterns("[2-9]"))
    return tmp_path / "artifacts" / bundle.parent.name / bundle.name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_figures_go_into_the_run_and_into_the_bundle(copied: Path, tmp_path: Path) -> None:
    before = read_manifest(copied)
    for options, formats in ((["trust=true"], ["eager", "onnx", "torchscript"]), ([], ["eager", "onnx"])):
        done = run_command("benchmark", "bundle=latest", *SHORT, *options, cwd=tmp_path)
        assert ("left out    model.pt: code, which runs only with trust=true" in done.stdout) == (options == [])
        measured: dict[str, Any] = json.loads((copied / "benchmark.json").read_text(encoding="utf-8"))
        names = [(row["format"], row["batch_size"]) for row in measured["rows"]]
        assert names == [(name, size) for size in (1, 64) for name in formats]
        for row in measured["rows"]:
            assert 0 < row["p50_ms"] <= row["p95_ms"]
            assert row["num_calls"] >= 10
            assert row["samples_per_second"] > 0
            low, high = row["speedup_range"]
            assert low <= row["speedup"] <= high
        assert measured["num_threads"] == 1
    verify(copied)
    card = (copied / "README.md").read_text(encoding="utf-8")
    assert card.count("## Speed") == card.count("| onnx | 64 |") == 1, "the card was not written anew"
    assert "torchscript |" not in card
    assert card.count("(benchmark.png)") == 1
    after = read_manifest(copied)
    assert after["files"].keys() - before["files"].keys() == {"benchmark.json", "benchmark.png"}
    assert {**after, "files": {}} == {**before, "files": {}}
    run_dir = max((tmp_path / "logs/benchmark/runs").iterdir())
    assert (run_dir / "benchmark.json").read_bytes() == (copied / "benchmark.json").read_bytes()
    assert (run_dir / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in copied.parent.iterdir()) == ["1", "config.pbtxt"]


def test_figures_name_the_processor_and_nobody(copied: Path, tmp_path: Path) -> None:
    run_command("benchmark", "bundle=latest", *SHORT, "batch_sizes=[3]", "num_threads=2", cwd=tmp_path)
    text = (copied / "benchmark.json").read_text(encoding="utf-8")
    measured = json.loads(text)
    assert measured["machine"].keys() == {"processor", "num_cores", "system"}
    assert measured["num_threads"] == 2
    assert {row["batch_size"] for row in measured["rows"]} == {3}
    for word in (str(tmp_path), str(Path.home()), f'"{getpass.getuser()}"', os.uname().nodename):
        assert word not in text


def test_rows_are_the_figures_of_the_calls() -> None:
    eager, fast = [[0.004, 0.004, 0.010], [0.008, 0.008, 0.008]], [[0.001, 0.001, 0.001], [0.004, 0.004, 0.004]]
    base, row = to_rows({EAGER: eager, "onnx": fast}, batch_size=10)
    assert base["format"] == "eager"
    assert base["p50_ms"] == pytest.approx(8.0)
    assert base["p95_ms"] == pytest.approx(9.5)
    assert base["speedup_range"] == [1, 1]
    assert row["num_calls"] == 6
    assert row["speedup_range"] == pytest.approx([2, 4])
    assert row["speedup"] == pytest.approx(3)
    assert row["samples_per_second"] == pytest.approx(10 * 6 / 0.015)


def changed(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")


def without_weights(folder: Path) -> None:
    manifest = read_manifest(folder)
    del manifest["files"]["model.safetensors"]
    (folder / "model.safetensors").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "options", "exit_code", "sentence"),
    [
        (changed, [], 1, "model.onnx in "),
        (without_weights, [], 2, "export with formats=[onnx,torchscript,safetensors]"),
        (lambda folder: None, ["batch_sizes=[1,65]"], 2, "batch_sizes=65 is out of range"),
    ],
    ids=["changed", "no weights", "batch"],
)
def test_bundle_that_cannot_be_measured_is_refused_and_untouched(
    spoil: Callable[[Path], None], options: list[str], exit_code: int, sentence: str, copied: Path, tmp_path: Path
) -> None:
    spoil(copied)
    before = contents(tmp_path)
    refused = run_command("benchmark", "bundle=latest", *SHORT, *options, cwd=tmp_path, check=False)
    assert refused.returncode == exit_code, refused.stderr
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert contents(tmp_path) == before


def test_file_that_no_runtime_takes_is_named(copied: Path, tmp_path: Path) -> None:
    """Its hash is right, so the mistake shows only when it runs."""
    (copied / "model.onnx").write_bytes(b"no model")
    add_to(copied, read_manifest(copied), lambda made: shutil.copy(copied / "model.onnx", made) and None)
    refused = run_command("benchmark", "bundle=latest", *SHORT, cwd=tmp_path, check=False)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: model.onnx cannot be timed: ")


@pytest.mark.parametrize("last", ["manifest.json", "zebra.txt"])
def test_failure_between_two_files_gives_the_bundle_back(copied: Path, last: str) -> None:
    """The move of one file fails, because a folder has its name, when those before it have been moved."""
    (copied / last).unlink(missing_ok=True)
    (copied / last).mkdir()
    before = contents(copied)

    def write(made: Path) -> None:
        for name in ("README.md", "a new file", "zebra.txt"):
            (made / name).write_text("new", encoding="utf-8")

    with pytest.raises(IsADirectoryError):
        add_to(copied, {"files": {}}, write)
    assert contents(copied) == before
    assert sorted(path.name for path in copied.parent.iterdir()) == ["1", "config.pbtxt"]


def test_interruption_ends_all_processes_and_changes_nothing(copied: Path, tmp_path: Path) -> None:
    before = contents(copied.parent)
    with started("benchmark", "bundle=latest", "seconds=30", cwd=tmp_path) as process:
        wait_for(process, "measuring")
        assert_ends_by_interruption(process)
    assert contents(copied.parent) == before


def test_bundle_is_found_from_within_its_own_folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied)
    verify(find_bundle(".", Path("artifacts")))
    (copied.parent / "config.pbtxt").write_text("max_batch_size: 64", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.pbtxt"):
        verify(find_bundle(".", Path("artifacts")))
