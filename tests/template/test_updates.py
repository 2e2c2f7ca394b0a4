"""A project knows where it comes from, and cruft brings it up to date without losing what its owner changed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEMPLATE, bake_into, files_of, ruff, run

CRUFT = str(Path(sys.executable).parent / "cruft")
# A commit that is old enough to be far away, and has the questions of today's default project.
OLD = "45f3df6"
IDENTITY = ("-c", "user.name=A User", "-c", "user.email=user@example.com")


def commit(folder: Path, message: str) -> None:
    run("git", "add", "--all", cwd=folder)
    run("git", *IDENTITY, "commit", "--quiet", "--allow-empty", f"--message={message}", cwd=folder)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A clone of the template with what is not committed yet."""
    if not (TEMPLATE / ".git").exists():
        pytest.skip("not run: the template's history is not here")
    clone = tmp_path / "template"
    run("git", "clone", "--quiet", "--no-local", str(TEMPLATE), str(clone), cwd=tmp_path)
    known = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=TEMPLATE).split("\0")
    for path in clone.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in filter(None, known):
        if (TEMPLATE / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TEMPLATE / name, clone / name)
    commit(clone, "as it lies")
    return clone


@pytest.fixture
def old_project(template: Path, tmp_path: Path) -> Path:
    if subprocess.run(["git", "cat-file", "-e", OLD], cwd=template, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("not run: a clone without its history")
    run(CRUFT, "create", "--no-input", "--checkout", OLD, "--output-dir", str(tmp_path), str(template), cwd=tmp_path)
    project = tmp_path / "digit-classifier"
    commit(project, "as it was generated")
    return project


def change(path: Path, line: str, to: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(line) == 1
    path.write_text(text.replace(line, to), encoding="utf-8")


def test_cruft_and_cookiecutter_render_the_same(template: Path, tmp_path: Path) -> None:
    for name in ("cruft", "cookiecutter"):
        (tmp_path / name).mkdir()
    run(CRUFT, "create", "--no-input", "--output-dir", str(tmp_path / "cruft"), str(template), cwd=tmp_path)
    cookiecutter = str(Path(sys.executable).parent / "cookiecutter")
    run(cookiecutter, "--no-input", "--output-dir", str(tmp_path / "cookiecutter"), str(template), cwd=tmp_path)
    ours, theirs = (tmp_path / name / "digit-classifier" for name in ("cookiecutter", "cruft"))
    assert files_of(ours) == files_of(theirs)
    for path in files_of(ours) - {".cruft.json"}:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    assert json.loads((ours / ".cruft.json").read_text()) == json.loads((theirs / ".cruft.json").read_text())
    commit(ours, "as it was generated")
    assert "up to date" in run(CRUFT, "check", cwd=ours)


def test_update_takes_what_is_new_and_keeps_what_its_owner_changed(
    template: Path, old_project: Path, tmp_path: Path
) -> None:
    source = old_project / "src/digit_classifier"
    change(source / "configs/model/mlp.yaml", "dropout: ", "dropout: 0.11 # of mine: ")
    (source / "models/mine.py").write_text('"""A network of my own."""\n', encoding="utf-8")
    (old_project / "docs/edge.md").unlink()
    (old_project / "CHANGELOG.md").write_text("# My changes\n", encoding="utf-8")
    commit(old_project, "mine")
    run(CRUFT, "update", "--skip-apply-ask", cwd=old_project)
    assert not [path for path in files_of(old_project) if path.endswith((".rej", ".orig"))]
    fresh = bake_into(tmp_path / "fresh")
    changed = {"src/digit_classifier/configs/model/mlp.yaml", "CHANGELOG.md", ".cruft.json"}
    removed, added = {"docs/edge.md"}, {"src/digit_classifier/models/mine.py"}
    assert files_of(old_project) == (files_of(fresh) | {".cruft.json"}) - removed | added
    for path in files_of(old_project) - changed - added:
        assert (old_project / path).read_bytes() == (fresh / path).read_bytes(), path
    assert "dropout: 0.11 # of mine" in (source / "configs/model/mlp.yaml").read_text(encoding="utf-8")
    head = run("git", "rev-parse", "HEAD", cwd=template).strip()
    noted = json.loads((old_project / ".cruft.json").read_text(encoding="utf-8"))
    assert noted["commit"] == head
    assert noted["context"]["cookiecutter"]["_template_version"] in (TEMPLATE / "CHANGELOG.md").read_text()
    ruff("check", cwd=old_project)


def test_what_both_changed_is_shown_as_a_conflict(template: Path, old_project: Path) -> None:
    line = "max_epochs: 30\n"
    place = "src/digit_classifier/configs/trainer/auto.yaml"
    theirs = template / place.replace("digit_classifier", "{{cookiecutter.package_name}}", 1)
    theirs = template / "{{cookiecutter.project_slug}}" / theirs.relative_to(template)
    change(theirs, line, "max_epochs: 31\n")
    commit(template, "a change of the template")
    change(old_project / place, line, "max_epochs: 32\n")
    commit(old_project, "mine")
    subprocess.run([CRUFT, "update", "--skip-apply-ask"], cwd=old_project, check=False, capture_output=True)
    text = (old_project / place).read_text(encoding="utf-8")
    assert "max_epochs: 32" in text
    assert "max_epochs: 31" in text or (old_project / f"{place}.rej").is_file()
    assert place in run("git", "status", "--porcelain", cwd=old_project)
