"""The table "How to remove what you do not want" of the project's README, followed word for word."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[2]
(PACKAGE,) = (path.parent.name for path in PROJECT.glob("src/*/train.py"))


class Row(NamedTuple):
    feature: str
    files: str
    lines: str


def table_rows() -> list[Row]:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## How to remove what you do not want")[2].partition("\n## ")[0]
    table = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [Row(*(cell.strip() for cell in cells)) for cells in table[2:]]


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def delete_files(project: Path, cell: str) -> None:
    for name in in_backticks(cell):
        path = project / "src" / PACKAGE / name if name.startswith("engine/") else project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def delete_lines(project: Path, cell: str) -> None:
    """`file`: lines with `a`, `b`, section `c`, words `d`; further files after a semicolon."""
    for instruction in filter(None, cell.split("; ")):
        name, _, rest = instruction.partition(": ")
        path = project / name.strip("`")
        text = path.read_text(encoding="utf-8")
        for kind, items in re.findall(r"(lines with|section|words) ((?:`[^`]+`(?:, )?)+)", rest):
            for item in in_backticks(items):
                assert item in text, f"{name} has no {item}"
                text = {"lines with": without_lines, "section": without_section, "words": without_words}[kind](
                    text, item
                )
        path.write_text(text, encoding="utf-8")


def without_lines(text: str, words: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if words not in line)


def without_section(text: str, start: str) -> str:
    """Removes the line that begins with `start`, and what follows it up to an empty line."""
    shortened, found = re.subn(rf"^{re.escape(start)}.*\n(?:.+\n)*", "", text, flags=re.MULTILINE)
    assert found == 1, start
    return shortened


def without_words(text: str, words: str) -> str:
    return text.replace(f" {words}", "")


def delete_rows_with_dead_links(project: Path) -> None:
    """What the README asks for before its table; each link that is left must lead to a file."""
    readme, dead = project / "README.md", []
    for line in readme.read_text(encoding="utf-8").splitlines():
        linked = [link.partition("#")[0] for link in re.findall(r"\]\(([^):]+)\)", line)]
        if any(not (project / link).exists() for link in linked if link):
            dead.append(line)
    assert all(line.startswith("|") for line in dead), dead
    kept = (line for line in readme.read_text(encoding="utf-8").splitlines() if line not in dead)
    readme.write_text("\n".join(kept) + "\n", encoding="utf-8")


def follow_guide(project: Path, name: str) -> None:
    """Writes the files of the guide, runs its first command and makes its data set the default."""
    guide = (project / "docs" / name).read_text(encoding="utf-8")
    for block in re.findall(r"```(?:python|yaml)\n# (src/.*?)```", guide, re.DOTALL):
        path, _, content = block.partition("\n")
        (project / path).write_text(content, encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
    run(project, "bash", "-ec", block.partition(f"python -m {PACKAGE}")[0])
    options = project / "src" / PACKAGE / "configs/train.yaml"
    text = re.sub("- data: .*", "- data: mine", options.read_text(encoding="utf-8"))
    options.write_text(text, encoding="utf-8")


def run(project: Path, *command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    kept_out = (".git", ".[!g]*", "logs", "artifacts", "build", "engine_tests", "__pycache__")
    return Path(shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns(*kept_out)))


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row.feature.partition(" (")[0])
def test_feature_can_be_removed_as_the_readme_says(row: Row, copied: Path, mypy_cache: Path) -> None:
    if "my-data.md" in row.feature:
        follow_guide(copied, "my-data.md")
    if "(after torchvision)" in row.feature:
        (first,) = (other for other in table_rows() if other.feature.startswith("torchvision"))
        delete_files(copied, first.files)
        delete_lines(copied, first.lines)
    delete_files(copied, row.files)
    delete_lines(copied, row.lines)
    delete_rows_with_dead_links(copied)
    run(copied, sys.executable, "-m", PACKAGE, "train", "trainer.max_epochs=1")
    run(copied, "ruff", "check")
    run(copied, "ruff", "format", "--check")
    run(copied, "mypy", "--cache-dir", str(mypy_cache))
    run(copied, "make", "--dry-run", "train")
