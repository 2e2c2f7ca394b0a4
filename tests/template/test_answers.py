"""Hostile answers come through intact, impossible ones are refused in one sentence."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import TEMPLATE, Bake, files_of, ruff

HOSTILE = [
    'He said "hi"',
    "It's mine",
    "back\\slash\\",
    '""" quoted """',
    "naïve Größe",
    "数字分类",
    "ship 🚢🏳️‍🌈",
    "<b>&amp;</b>",
    "# not a comment: [x] = 'y'",
    "100% $HOME ${seed} $(date) `id`",
    "class",
    "3D nets",
    "Torch",
    "test",
    "long " * 80 + "name",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_any_printable_words_come_through_intact(bake: Bake, words: str) -> None:
    project = bake(project_name=words, description=words, author_name=words)
    pyproject = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["description"] == words
    assert pyproject["project"]["authors"][0]["name"] == words
    readme = (project / "README.md").read_text(encoding="utf-8").splitlines()
    assert (readme[0], readme[2]) == (f"# {words}", words)
    assert f"Copyright (c) {words}" in (project / "LICENSE").read_text(encoding="utf-8").splitlines()
    ruff("check", cwd=project)
    ruff("format", "--check", cwd=project)


@pytest.mark.parametrize(
    ("name", "slug", "package"),
    [
        ("Torch", "torch-project", "torch_project"),
        ("class", "class-project", "class_project"),
        ("3D nets", "3d-nets", "project_3d_nets"),
        ("🚢", "my-project", "my_project"),
        ("数字", "shu-zi", "shu_zi"),
    ],
)
def test_default_slug_and_package_work_for_any_name(bake: Bake, name: str, slug: str, package: str) -> None:
    project = bake(project_name=name)
    assert project.name == slug
    assert (project / "src" / package / "train.py").is_file()


def test_author_and_email_may_be_empty(bake: Bake) -> None:
    project = bake(author_name="", email="")
    assert "authors" not in tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]


REFUSED = [
    ("project_name=", "project_name is empty"),
    ("project_name= ", "project_name is empty"),
    ("project_name=two\nlines", "holds a character that cannot be printed"),
    ("description=bell\a", "holds a character that cannot be printed"),
    ("email=nobody", "email='nobody' is no address"),
    ("project_slug=", "project_slug='' is no folder name"),
    ("project_slug=../up", "project_slug='../up' is no folder name"),
    ("project_slug=a/b", "project_slug='a/b' is no folder name"),
    ("project_slug=with space", "is no folder name"),
    ("project_slug=-dash", "is no folder name"),
    ("project_slug=nul", "cannot be a folder on Windows: take 'nul-project'"),
    ("project_slug=scikit-learn", "is the name of another package: take 'scikit-learn-project'"),
    ("package_name=", "package_name='' is no name of a Python package"),
    ("package_name=2x", "package_name='2x' is no name of a Python package"),
    ("package_name=my-package", "is no name of a Python package"),
    ("package_name=naïve", "is no name of a Python package"),
    ("package_name=MyPackage", "take small letters"),
    ("package_name=aux", "take 'aux_project'"),
    ("package_name=mypy", "take 'mypy_project'"),
    (f"package_name={'a' * 41}", "has 41 characters: take 40 or less"),
    (f"project_slug={'a' * 101}", "has 101 characters: take 100 or less"),
    ("email=jörg@example.com", "is no address"),
    ("email=a..b@example.com", "is no address"),
    ("package_name=class", "package_name='class' is taken"),
    ("package_name=json", "package_name='json' is taken"),
    ("package_name=test", "take 'test_project'"),
    ("package_name=torch", "take 'torch_project'"),
    ("package_name=lightning", "take 'lightning_project'"),
    ("package_name=hydra", "take 'hydra_project'"),
]


def cookiecutter_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "cookiecutter", TEMPLATE, "--no-input", "--output-dir", folder, *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("answer", "sentence"), REFUSED)
def test_impossible_answer_is_refused_in_one_sentence(tmp_path: Path, answer: str, sentence: str) -> None:
    refused = cookiecutter_command(tmp_path / "out", answer)
    assert refused.returncode == 1
    (line,) = (refused.stdout + refused.stderr).splitlines()
    assert sentence in line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_vision_is_refused_for_tables(tmp_path: Path) -> None:
    refused = cookiecutter_command(tmp_path / "out", "vision=true", "data_kind=tables")
    assert refused.returncode == 1
    (line,) = (refused.stdout + refused.stderr).splitlines()
    assert "vision=true is for pictures, not for tables: answer data_kind=images." in line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_choice_that_is_not_on_the_list_is_refused_by_cookiecutter(tmp_path: Path) -> None:
    refused = cookiecutter_command(tmp_path / "out", "license=GPL")
    assert refused.returncode == 1
    assert "the choices are ['MIT', 'Apache-2.0', 'BSD-3-Clause', 'Proprietary']" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_hook_refuses_by_itself_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--replay` takes answers as they are; nothing of the folder is left."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"replay_dir: '{tmp_path}'\n", encoding="utf-8")  # the usual one is that of all tests
    monkeypatch.setenv("COOKIECUTTER_CONFIG", str(settings))
    assert cookiecutter_command(tmp_path / "first").returncode == 0
    replay = tmp_path / f"{TEMPLATE.name}.json"
    spoiled = tmp_path / "spoiled.json"
    spoiled.write_text(
        replay.read_text(encoding="utf-8").replace('"package_name": "digit_classifier"', '"package_name": "torch"'),
        encoding="utf-8",
    )
    command = [Path(sys.executable).parent / "cookiecutter", TEMPLATE, "--replay-file", spoiled]
    refused = subprocess.run([*command, "-o", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "error: package_name='torch' is taken" in refused.stderr
    assert not list((tmp_path / "out").iterdir())


def test_existing_folder_is_left_alone_without_force(tmp_path: Path) -> None:
    assert cookiecutter_command(tmp_path).returncode == 0
    mine = tmp_path / "digit-classifier/mine.txt"
    mine.write_text("mine")
    refused = cookiecutter_command(tmp_path, "package_name=other")
    assert refused.returncode == 1
    assert "already exists" in refused.stdout + refused.stderr
    assert mine.read_text() == "mine"
    assert not (tmp_path / "digit-classifier/src/other").exists()
    assert cookiecutter_command(tmp_path, "--overwrite-if-exists").returncode == 0
    assert "mine.txt" in files_of(tmp_path / "digit-classifier")
