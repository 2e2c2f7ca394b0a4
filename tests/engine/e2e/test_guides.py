"""The guides `docs/my-*.md`, followed word for word: their files, their changes and their commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import digit_classifier

PROJECT = Path(digit_classifier.__file__).parents[2]
GUIDES = sorted(path.name for path in (PROJECT / "docs").glob("my-*.md"))
MAX_NETWORK_LINES = 20


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns(".*", "logs", "artifacts", "build", "engine_tests", "__pycache__")
    return Path(shutil.copytree(PROJECT, tmp_path / "project", ignore=ignored))


def blocks(guide: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)


def write_files(project: Path, guide: Path) -> list[Path]:
    """Writes each block whose first line is a path to this path, and returns the paths."""
    found = []
    for block in (*blocks(guide, "python"), *blocks(guide, "yaml")):
        first, _, rest = block.partition("\n")
        path = project / first.removeprefix("# ")
        path.write_text(rest, encoding="utf-8")
        found.append(path)
    return found


def change(project: Path, block: str) -> None:
    """Inserts each line that begins with a plus behind the line before it."""
    lines = block.splitlines()
    path = project / next(line for line in lines if line.startswith("+++ b/")).removeprefix("+++ b/")
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    place = -1
    for line in lines[2:]:
        if line.startswith("+"):
            place += 1
            text.insert(place, line[1:] + "\n")
        elif not line.startswith("@@"):
            place = next(number for number in range(place + 1, len(text)) if text[number] == line[1:] + "\n")
    path.write_text("".join(text), encoding="utf-8")


@pytest.mark.slow
def test_shipped_tests_hold_after_all_guides(copied: Path) -> None:
    """With data, network, metric and loss of the guides, and with them as defaults."""
    environment = os.environ | {"PYTHONPATH": str(copied / "src"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    for name in GUIDES:
        write_files(copied, copied / "docs" / name)
        for block in blocks(copied / "docs" / name, "diff"):
            change(copied, block)
    (make_data, *_) = blocks(copied / "docs/my-data.md", "bash")
    subprocess.run(["bash", "-ec", make_data], cwd=copied, env=environment, check=True, capture_output=True)
    train = copied / "src/digit_classifier/configs/train.yaml"
    text = re.sub(r"- data: \w+", "- data: mine", train.read_text(encoding="utf-8"))
    train.write_text(re.sub(r"- model: \w+", "- model: focal", text), encoding="utf-8")
    tests = [sys.executable, "-m", "pytest", "-q", "tests"]
    done = subprocess.run(tests, cwd=copied, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", GUIDES)
def test_guide_works_as_it_says(name: str, copied: Path) -> None:
    guide = copied / "docs" / name
    assert len(guide.read_text(encoding="utf-8").splitlines()) <= 110, "one page"
    files = write_files(copied, guide)
    if name == "my-network.md":
        lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert len(lines) < MAX_NETWORK_LINES
    for block in blocks(guide, "diff"):
        change(copied, block)
    environment = os.environ | {"PYTHONPATH": str(copied / "src"), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    for tool in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        done = subprocess.run(tool, cwd=copied, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    for block in blocks(guide, "bash"):
        done = subprocess.run(
            ["bash", "-ec", block], cwd=copied, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    pairs = [sys.executable, "-m", "pytest", "-q", "tests/test_pairs.py", "tests/test_configs.py"]
    done = subprocess.run(pairs, cwd=copied, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
