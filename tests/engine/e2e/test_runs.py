"""What is left of runs: their report, the table, a comparison, and what `doctor` says of this machine."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import curves, run_command, started, wait_for, weights

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.runs import run_record


def test_report_of_a_run_describes_it_and_what_to_do_next(run_dir: Path, workplace: Path) -> None:
    text = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "- `trainer=cpu`\n- `trainer.max_epochs=2`\n" in text
    assert "| loss |" in text
    assert "torchmetrics" in text
    pictures = ["curves.png", "confusion_matrix.png"]
    assert all(f"]({name})" in text and (run_dir / name).is_file() for name in pictures)
    (command,) = (line for line in text.splitlines() if " evaluate " in line)
    verb, option = command.split(f"-m {package.__name__} ")[1].split()
    assert run_command(verb, option, cwd=workplace).returncode == 0


def test_table_and_comparison_of_runs(tmp_path: Path) -> None:
    assert "There is no run under logs/train yet." in run_command("runs", cwd=tmp_path).stdout
    for seed in (1, 2):
        run_command("train", "trainer=cpu", "model=mlp", "trainer.max_epochs=1", f"seed={seed}", cwd=tmp_path)
    first, second = sorted(path.name for path in (tmp_path / "logs/train/runs").iterdir())
    table = run_command("runs", cwd=tmp_path).stdout
    assert [name in table for name in (first, second, "seed=1", "seed=2", "finished", "val/loss")] == [True] * 6
    compared = run_command("runs", f"compare=[{first},latest]", cwd=tmp_path).stdout
    assert "seed" in compared
    assert "max_epochs" not in compared
    run_command("runs", f"remove=[{first}]", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "logs/train/runs").iterdir()] == [second]
    process = run_command("runs", "remove=[nowhere]", cwd=tmp_path, check=False)
    assert process.returncode == 2
    assert "'nowhere' is no run" in process.stderr


@pytest.mark.slow
def test_killed_run_is_lost_and_goes_on_in_its_directory_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit what an undisturbed run comes to, and its first epochs are in the curves."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the other commands have: sums depend on it
    options = ("trainer=cpu", "model=mlp", "trainer.max_epochs=6", "data.batch_size=32")
    with started("train", *options, cwd=tmp_path) as process:
        wait_for(process, "epoch 2/6")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert run_record.read_state(run_dir) == "lost"
    before = (run_dir / ".hydra/overrides.yaml").read_bytes()
    run_command("train", "resume=latest", cwd=tmp_path)
    assert run_record.read_state(run_dir) == "finished"
    assert (run_dir / ".hydra/overrides.yaml").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    run_command("train", *options, cwd=other)
    (undisturbed,) = (other / "logs/train/runs").iterdir()
    for name, weight in weights(undisturbed).items():
        assert weight.equal(weights(run_dir)[name]), name
    assert curves(run_dir) == curves(undisturbed)
    again = run_command("train", "resume=latest", cwd=other, check=False)
    assert again.returncode == 2
    assert "has come to its end, after 6 epochs: give trainer.max_epochs=" in again.stderr
    assert run_record.read_state(undisturbed) == "finished"


def test_doctor_says_what_there_is_and_what_to_type_next(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", package.__name__, "doctor"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    for what in ("Python", "torch", "GPUs", "disk", "shared memory", "engine", "strategy"):
        assert any(f" {what} " in line for line in process.stdout.splitlines()), what
    assert f"next: python -m {package.__name__} train" in process.stdout
    assert ("worker processes of a DataLoader can hang" in process.stdout) == (sys.version_info < (3, 11, 10))


def test_doctor_notes_an_edited_engine_and_finds_no_fault_in_it(tmp_path: Path) -> None:
    copy = tmp_path / "src" / package.__name__
    shutil.copytree(Path(package.__file__).parent, copy)
    with (copy / "engine/errors.py").open("a", encoding="utf-8") as file:
        file.write("# an edit\n")
    shutil.copy(Path(package.__file__).parents[2] / "pyproject.toml", tmp_path)
    process = subprocess.run(
        [sys.executable, "-m", package.__name__, "doctor"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    (line,) = (line for line in process.stdout.splitlines() if " engine " in line and "edited" in line)
    assert line.startswith("note")
    assert "errors.py (changed)" in line


@pytest.mark.parametrize("missing", ["onnx", "torch"])
def test_doctor_names_what_is_missing(missing: str, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.metadata as metadata\n"
        "known = metadata.version\n"
        "def version(name):\n"
        f"    if name == '{missing}': raise metadata.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        f"metadata.version, sys.modules['{missing}'] = version, None\n"
        f"from {package.__name__}.engine.doctor import main; main()"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert any(line.startswith("missing") and f" {missing} " in line for line in process.stdout.splitlines())
    assert process.stderr.startswith(f"error: {missing}")
    assert "Traceback" not in process.stderr
