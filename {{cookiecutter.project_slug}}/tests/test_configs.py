"""Every option file composes, and what it names can be built."""

from importlib import import_module
from pathlib import Path

import lightning.pytorch as pl
import pytest
from conftest import CHOICES, CONFIG_DIRS, PACKAGE, compose_config

COMMANDS = sorted({path.stem for folder in CONFIG_DIRS for path in folder.glob("*.yaml")})
# Data and networks are built in test_pairs.py; the others are no choices of `train`.
ELSEWHERE = ("data", "model", "hydra", "paths", "search", "training")

commands = import_module(f"{PACKAGE}.engine.commands")
UserError = import_module(f"{PACKAGE}.engine").UserError


@pytest.mark.parametrize("command", COMMANDS)
def test_command_composes(command: str, tmp_path: Path) -> None:
    assert compose_config(command, f"paths.output_dir={tmp_path}")["task_name"] == command


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.split("=")[0] not in ELSEWHERE])
def test_choice_composes_and_builds(choice: str, tmp_path: Path) -> None:
    config = compose_config("train", f"paths.output_dir={tmp_path}", choice)
    if choice == "trainer=gpu":
        config["trainer"]["accelerator"] = "cpu"  # there may be no GPU here: everything but its name is tried
    try:
        training = commands.Training.build(config)
    except UserError as error:
        pytest.skip(f"not run: {choice} needs other data, another network or more options: {error}")
    assert isinstance(training.datamodule, pl.LightningDataModule)
    assert isinstance(training.model, pl.LightningModule)
    assert isinstance(training.trainer, pl.Trainer)


@pytest.mark.parametrize("space", [choice for choice in CHOICES if choice.startswith("search=")])
def test_search_space_composes(space: str, tmp_path: Path) -> None:
    assert compose_config("search", f"paths.output_dir={tmp_path}", space)["search"]["space"]


def test_first_line_of_an_option_file_says_how_to_select_it() -> None:
    for path in (path for folder in CONFIG_DIRS for path in folder.glob("*/*.yaml")):
        first, second, *_ = path.read_text(encoding="utf-8").splitlines()
        comment = second if first.startswith("# @package") else first
        start = f"# {path.parent.name}={path.stem}: "
        assert comment.startswith(start), f"the first line of {path} has to begin with '{start}'"
