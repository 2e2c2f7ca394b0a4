"""What the tests share: a project generated from this template."""

import ast
import configparser
import functools
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).parents[1]
PROJECT = TEMPLATE / "{{cookiecutter.project_slug}}"
QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))

SHORT, LONG = "ab", "a" * 40
# The last answer of each question that changes code, and the longest name.
OTHERWISE = {
    "license": "Proprietary",
    "data_kind": "tables",
    "serving": False,
    "ci": "none",
    "git_init": False,
    "package_name": LONG,
}

Bake = Callable[..., Path]


# The questions that have a fixed set of answers; the first one of each is the default.
ANSWERS = {
    key: [value, not value] if isinstance(value, bool) else value
    for key, value in QUESTIONS.items()
    if not key.startswith("_") and isinstance(value, bool | list)
}
DEFAULTS = {key: answers[0] for key, answers in ANSWERS.items()}


def bake_into(folder: Path, **answers: object) -> Path:
    return Path(cookiecutter(str(TEMPLATE), no_input=True, output_dir=str(folder), extra_context=answers))


@pytest.fixture
def bake(tmp_path: Path) -> Bake:
    return lambda **answers: bake_into(tmp_path, **answers)


def files_of(project: Path) -> set[str]:
    """Returns all paths relative to the project, except those of git."""
    return {
        path.relative_to(project).as_posix()
        for path in project.rglob("*")
        if path.is_file() and path.relative_to(project).parts[0] != ".git"
    }


def parse(path: Path) -> None:
    """Raises an error where the syntax of a file is wrong, for the kinds of file that have one."""
    if path.suffix != ".png":
        parse_text(path.suffix, path.read_text(encoding="utf-8"))


@functools.cache
def parse_text(suffix: str, text: str) -> None:
    match suffix:
        case ".py":
            ast.parse(text)
        case ".toml":
            tomllib.loads(text)
        case ".yaml" | ".yml":
            list(yaml.safe_load_all(text))
        case ".json":
            json.loads(text)
        case ".ini":
            configparser.ConfigParser().read_string(text)


def ruff(*arguments: str, cwd: Path) -> None:
    command = [Path(sys.executable).parent / "ruff", *arguments]
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Returns the output of a command, which must succeed; variables of the surrounding `make` are removed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES")}
    process = subprocess.run(
        command, cwd=cwd, env=clean | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.returncode == 0, process.stdout
    return process.stdout
