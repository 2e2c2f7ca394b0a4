"""What people type out of habit from other tools: it works, or one sentence says what to type here."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError, nearest
from . import CONFIG_DIRS, PACKAGE

# The flags of Hydra; every other option is written without dashes.
FLAGS = {
    "help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "shell-completion", "config-path",
    "config-name", "config-dir", "experimental-rerun", "info",
}  # fmt: skip
# Options by the names that they have elsewhere.
ELSEWHERE = {
    "accelerator": "trainer=gpu or trainer=cpu",
    "batch_size": "data.batch_size=",
    "ckpt": "ckpt_path=",
    "epochs": "trainer.max_epochs=",
    "gpus": "trainer.devices=",
    "hparams_search": f"the command 'python -m {PACKAGE} search', whose options are those of search.yaml",
    "learning_rate": "model.optimizer.lr=",
    "lr": "model.optimizer.lr=",
    "num_workers": "data.num_workers=",
    "weight_decay": "model.optimizer.weight_decay=",
}
TRACKERS = ("tensorboard", "wandb", "mlflow")
ADDED = re.compile(r"\+{1,2}(\w+)[.=]")
KEY = re.compile(r"^(\w+):", re.MULTILINE)
TRAINER_OPTION = re.compile(r"trainer\.(\w+)=")


def with_habits(arguments: list[str], command: str) -> list[str]:
    """Returns the command line for Hydra: any option of Lightning's Trainer is taken, without a `+`.

    Raises `UserError` for options with dashes, for an option that a `+` adds and nothing reads, and for a tracker that
    is not installed.
    """
    for place, argument in enumerate(arguments):
        added, (key, _, value) = ADDED.match(argument), argument[2:].partition("=")
        if added and added[1] not in (words := _sections(command)):
            raise UserError(f"'{added[1]}' is no option; {elsewhere(added[1]) or nearest(added[1], words)}")
        if argument.startswith("--") and key not in FLAGS:
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            if not value and "=" not in following and not following.startswith("-"):
                value = following
            raise UserError(f"'{argument}' is no option; options have no dashes: did you mean '{_typed(key, value)}'?")
        if argument.startswith("logger="):
            for name in re.findall(r"\w+", argument.removeprefix("logger=")):
                if name in TRACKERS and find_spec(name) is None:
                    raise not_installed(name)
    arguments = [f"++{argument}" if _is_new(argument) else argument for argument in arguments]
    return [argument[1:] if _is_chosen(argument, command) else argument for argument in arguments]


def not_installed(tracker: str) -> UserError:
    return UserError(
        f"logger={tracker} is not installed: run 'pip install -c constraints.txt {tracker}', or take logger=csv."
    )


def elsewhere(word: str) -> str | None:
    """Returns the end of an error sentence, for an option that other tools have: what to type here."""
    option = _here(word)
    return None if option is None else f"did you mean {option if ' ' in option else repr(option)}?"


def _here(word: str) -> str | None:
    if word == "hparams_search" and not (CONFIG_DIRS[1] / "search.yaml").is_file():
        return None
    return ELSEWHERE.get(word, f"trainer.{word}=" if word in _trainer_arguments() else None)


def _typed(key: str, value: str) -> str:
    key = key.replace("-", "_")
    option = _here(key) or f"{key}="
    return f"{option}{value}" if option.endswith("=") else option


def _sections(command: str) -> set[str]:
    """What stands at the top of the options of a command: those of its file, and the groups."""
    groups = {path.name for folder in CONFIG_DIRS for path in folder.iterdir() if path.is_dir()}
    return {*KEY.findall(_text(command)), *groups} - {"defaults"}


def _is_chosen(argument: str, command: str) -> bool:
    """Whether a `+` would add a group a second time, as in `+experiment=example`."""
    added = re.match(r"\+(\w+)=", argument)
    return added is not None and re.search(rf"^  - {added[1]}:", _text(command), re.MULTILINE) is not None


def _text(command: str) -> str:
    """The text of the option files of a command."""
    files = [folder / f"{command}.yaml" for folder in CONFIG_DIRS]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


def _is_new(argument: str) -> bool:
    """Whether it is an argument of Lightning's Trainer that no option file names, and that the project leaves free."""
    found = TRAINER_OPTION.match(argument)
    if found is None or found[1] in _trainer_options() or found[1] == "accumulate_grad_batches":
        return False
    return found[1] in _trainer_arguments() and not any((folder / found[1]).is_dir() for folder in CONFIG_DIRS)


def _trainer_options() -> set[str]:
    """The options of the Trainer that its files name."""
    files = [file for folder in CONFIG_DIRS for file in folder.glob("trainer/*.yaml")]
    return {key for file in files for key in KEY.findall(file.read_text(encoding="utf-8"))}


@cache
def _trainer_arguments() -> frozenset[str]:
    """The arguments of Lightning's Trainer, read from its source: to import it takes seconds."""
    package = find_spec("lightning")
    if package is None or not package.submodule_search_locations:
        return frozenset()
    source = Path(package.submodule_search_locations[0]) / "pytorch/trainer/trainer.py"
    (trainer,) = (
        node for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
    )  # fmt: skip
    (init,) = (node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return frozenset(argument.arg for argument in init.args.kwonlyargs)
