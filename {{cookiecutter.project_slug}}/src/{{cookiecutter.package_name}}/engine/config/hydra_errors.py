"""Hydra's and OmegaConf's errors in one sentence that names the nearest option instead of advising `+key`."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError, nearest
from . import CONFIG_DIRS
from .habits import elsewhere


def as_user_error(error: Exception) -> UserError | None:
    """None for an error that no option caused."""
    raised: BaseException | None = error
    while raised is not None:  # a resolver's own refusal lies under two errors of OmegaConf
        if isinstance(raised, UserError):
            return raised
        raised = raised.__cause__ or raised.__context__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _explain_choice(Path(error.missing_cfg_file), error.options)
    if isinstance(error, OverrideParseException):
        remedy = "write an option as name=value, and a value with special characters as 'name=\"value\"'"
        return UserError(f"'{error.override}' cannot be read: {remedy}.")
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        if "Config group override" not in str(error):
            return None
        return UserError("a group cannot be null on the command line: leave it out with '~', as '~logger'.")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    if key and isinstance(parent, DictConfig) and key.rpartition(".")[2] not in parent:
        return _explain_key(key, parent)
    if group := re.match(r"Could not override '([^']+)'\. No match in the defaults list", str(error)):
        if habit := elsewhere(group[1]):
            return UserError(f"'{group[1]}' is no option; {habit}")
        return UserError(f"'{group[1]}' is no group of this command: what a checkpoint holds is taken from it.")
    if source := re.match(r"Interpolation key '([^']+)' not found", str(error)):
        return UserError(
            f"'{key}' takes the value of '{source[1]}', which is no option here: give '{key}' a value, "
            "or generate a project with other answers if it is of a kind that this one was not made for."
        )
    return UserError(" ".join(str(error).split()))


def _explain_key(key: str, parent: DictConfig) -> UserError:
    section, _, word = key.rpartition(".")
    if key == "trainer.accumulate_grad_batches":
        return UserError(f"'{key}' follows from 'data.micro_batch_size': set that one.")
    if (habit := elsewhere(word)) and section != "trainer":
        return UserError(f"'{key}' is no option; {habit}")
    if any((folder / word).is_dir() for folder in CONFIG_DIRS) and word not in parent:
        return UserError(f"'{key}' is no option; '{word}' is a group of its own: choose one as '{word}=...'.")
    return UserError(f"'{key}' is no option; {nearest(word, map(str, parent), section)}")


def _explain_choice(choice: Path, options: Sequence[str]) -> UserError:
    group, name = choice.parent.as_posix(), choice.stem
    sentence = f"'{group}={name}' is no option; "
    for other in sorted(file for folder in CONFIG_DIRS for file in folder.glob(f"*/{name}.yaml")):
        return UserError(f"{sentence}did you mean '{other.parent.name}={name}'?")
    return UserError(sentence + nearest(name, options))
