"""Every option file composes, and what it names can be built."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
{% if cookiecutter.vision %}
from downloads import write_mnist
{% endif %}
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from {{ cookiecutter.package_name }}.engine.config import CONFIG_DIRS
from {{ cookiecutter.package_name }}.engine.config.command_line import register_with_hydra
from {{ cookiecutter.package_name }}.engine.config.habits import TRACKERS
from {{ cookiecutter.package_name }}.engine.config.hydra_versions import VERSION_BASE
{% if cookiecutter.search %}
from {{ cookiecutter.package_name }}.engine.config.validation import build as built
{% endif %}
from {{ cookiecutter.package_name }}.engine.config.validation import read_options
from {{ cookiecutter.package_name }}.engine.distributed.plan import make_plan
from {{ cookiecutter.package_name }}.engine.errors import UserError
{% if cookiecutter.search %}
from {{ cookiecutter.package_name }}.engine.search.space import distributions, options, samples
{% endif %}
from {{ cookiecutter.package_name }}.engine.training import build
from {{ cookiecutter.package_name }}.engine.training.options import TrainOptions
from {{ cookiecutter.package_name }}.engine.workflows.exporting import Options as ExportOptions

OPTION_FILES = [path for folder in CONFIG_DIRS for path in folder.glob("*/*.yaml")]
COMMANDS = sorted(path.stem for folder in CONFIG_DIRS for path in folder.glob("*.yaml"))
NO_CHOICE = ("hydra", "paths", "search", "training")  # parts of others, and of the command `search`
CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in OPTION_FILES if path.parent.name not in NO_CHOICE)


def composed(command: str, run_dir: Path, *options: str) -> dict[str, Any]:
    register_with_hydra()
    with initialize_config_dir(str(CONFIG_DIRS[0]), **VERSION_BASE):
        config = compose(command, [*options, f"paths.output_dir={run_dir}"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    shown = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain = OmegaConf.to_container(shown, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.mark.parametrize("choice", CHOICES)
{% if cookiecutter.data_kind == "images" %}
def test_choice_composes_and_builds(choice: str, tmp_path: Path, picture_folder: Path) -> None:
    needed = {"data=image_folder": [f"data.root={picture_folder}", f"data.cache_dir={tmp_path}"]}
{% if cookiecutter.vision %}
    needed["data=torchvision"] = [f"data.root={tmp_path}"]
    write_mnist(tmp_path)
{% endif %}
    config = composed("train", tmp_path, choice, *needed.get(choice, []))
{% else %}
def test_choice_composes_and_builds(choice: str, tmp_path: Path) -> None:
    config = composed("train", tmp_path, choice)
{% endif %}
    if choice == "trainer=gpu":
        config["trainer"]["accelerator"] = "cpu"  # no such device here: all but its name is tried
    read_options(config, TrainOptions)
    datamodule: Any = build.build_datamodule(config["data"], config["seed"])
    model = build.build_model(config["model"], datamodule.spec)
    if (name := choice.removeprefix("logger=")) in TRACKERS and find_spec(name) is None:
        with pytest.raises(UserError, match=f"logger={name} is not installed: run 'pip install"):
            build.build_loggers({name: config["logger"][name]}, tmp_path)
        return
    loggers = build.build_loggers(config["logger"], tmp_path)
    callbacks = build.build_callbacks(config["callbacks"], loggers, [])
    assert isinstance(build.build_trainer(make_plan(config), callbacks, loggers, tmp_path), pl.Trainer)
    inputs, _ = next(iter(datamodule.test_dataloader()))
    with torch.inference_mode():
        assert model(inputs).shape == (len(inputs), datamodule.spec.num_outputs)


@pytest.mark.parametrize("option", ["logger=[csv,tensorboard]", "logger=tensorboard"])
def test_trackers_are_combined(option: str, tmp_path: Path) -> None:
    assert list(composed("train", tmp_path, option)["logger"]) == ["csv", "tensorboard"]


def test_no_choice_is_missed() -> None:
    """The project came with {{ 24 if cookiecutter.data_kind == "tables" else 23 }} of them; your own are tried too."""
    assert len(CHOICES) >= {{ 24 if cookiecutter.data_kind == "tables" else 23 }}


def test_first_line_of_an_option_file_says_how_to_select_it() -> None:
    for path in OPTION_FILES:
        first, second, *_ = path.read_text(encoding="utf-8").splitlines()
        comment = second if first.startswith("# @package") else first
        assert comment.startswith(f"# {path.parent.name}={path.stem}: "), path


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str, tmp_path: Path) -> None:
    assert composed(command, tmp_path)["task_name"] == command


{% if cookiecutter.search %}
@pytest.mark.parametrize("space", sorted(path.stem for path in OPTION_FILES if path.parent.name == "search"))
def test_space_of_a_search_names_options_that_exist(space: str, tmp_path: Path) -> None:
    section = composed("search", tmp_path, f"search={space}")["search"]
    for choice in samples(distributions(section["space"])):
        composed("train", tmp_path, *options(choice, distributions(section["space"])))
    assert built(section["sampler"], "search.sampler", seed=1) is not None
    assert built(section["pruner"], "search.pruner") is not None


{% endif %}
def test_export_options_fit(tmp_path: Path) -> None:
    assert read_options(composed("export", tmp_path)["export"], ExportOptions).name is None


def test_learning_rate_monitor_is_left_out_without_a_logger(tmp_path: Path) -> None:
    config = composed("train", tmp_path)
    loggers, sections = build.build_loggers(config["logger"], tmp_path), config["callbacks"]
    assert len(build.build_callbacks(sections, [], [])) == len(build.build_callbacks(sections, loggers, [])) - 1


def test_callback_set_to_null_is_left_out(tmp_path: Path) -> None:
    config = composed("train", tmp_path, "callbacks.early_stopping=null")
    names = [type(callback).__name__ for callback in build.build_callbacks(config["callbacks"], [], [])]
    assert "EarlyStopping" not in names
    assert "ModelCheckpoint" in names
