"""The border between the command line and the code: Hydra composes, mistakes become one sentence and exit code 2."""

import functools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .quiet import QUIET, quieten
from .refusal import Refusal, nearest

CONFIGS = Path(__file__).parent / "configs"

# Commands that start from a checkpoint take any option of its data; which there are is known once it is read.
_from_checkpoint = OmegaConf.create({"data": {}})
OmegaConf.set_struct(_from_checkpoint.data, False)
ConfigStore.instance().store("from_checkpoint", _from_checkpoint)

Config = dict[str, Any]


def command(name: str, needs: tuple[str, ...]) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Turns `main(config)` into a command whose options are `configs/<name>.yaml`; `needs` are groups that must stay.

    The wrapped function gets the composed and resolved configuration as plain dicts and lists: Hydra and OmegaConf
    stop here.
    """

    def decorate(main: Callable[[Config], None]) -> Callable[[], None]:
        exit_code = 0

        @functools.wraps(main)
        def job(cfg: DictConfig) -> None:
            nonlocal exit_code
            try:
                main(_plain(cfg, needs))
            except Refusal as refusal:  # in a sweep the other jobs go on
                exit_code = refusal.exit_code
                _print_refusal(refusal)
                _remove_empty_run(Path(HydraConfig.get().runtime.output_dir), f"{cfg.task_name}.log")

        @functools.wraps(main)
        def run() -> None:
            # Without it Hydra prints an error of its own and exits, and the sentence below would never be reached.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            quieten(*QUIET)
            try:
                hydra.main(version_base="1.3", config_path="configs", config_name=name)(job)()
            except (HydraException, OmegaConfBaseException) as error:
                _print_refusal(explain(error))
                sys.exit(2)
            except ValueError as error:
                if "Config group override" not in str(error):
                    raise
                _print_refusal(
                    Refusal("a group cannot be null on the command line: leave it out with '~', as '~logger'.")
                )
                sys.exit(2)
            except KeyboardInterrupt:
                sys.exit(130)
            if exit_code:
                sys.exit(exit_code)

        return run

    return decorate


def job_logging() -> Config:
    """How Hydra configured this process's logging, for worker processes that never meet Hydra."""
    settings = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def _plain(cfg: DictConfig, needs: tuple[str, ...]) -> Config:
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error) from None
    assert isinstance(config, dict)
    for group in needs:
        if config.get(group) is None:
            raise Refusal(f"'{group}' is needed: it cannot be left out.")
    return {str(key): value for key, value in config.items()}


def _print_refusal(refusal: Refusal) -> None:
    print(f"error: {refusal}", file=sys.stderr)


def _claim(folder: str) -> str:
    """Makes the folder for this run alone: two that start in the same second get `<folder>` and `<folder>-2`."""
    number = 1
    while True:
        path = Path(folder if number == 1 else f"{folder}-{number}")
        try:
            path.mkdir(parents=True)
            return str(path)
        except FileExistsError:
            number += 1


OmegaConf.register_new_resolver("claim", _claim, use_cache=True)


def _remove_empty_run(run_dir: Path, log_file: str) -> None:
    """A refused job leaves no folder: Hydra made one, and nothing is in it but its own notes and the log."""
    if all(path.name in (".hydra", log_file) for path in run_dir.iterdir()):
        logging.shutdown()  # closes the log file, which some systems do not remove while it is open
        shutil.rmtree(run_dir / ".hydra")
        (run_dir / log_file).unlink(missing_ok=True)
        run_dir.rmdir()


def explain(error: Exception) -> Refusal:
    """Hydra's and OmegaConf's errors in one sentence that names the nearest option instead of advising `+key`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _explain_choice(Path(error.missing_cfg_file), error.options)
    if isinstance(error, OverrideParseException):
        return Refusal(f"'{error.override}' cannot be read: write an option as name=value, and quote it for the shell.")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    if key and isinstance(parent, DictConfig) and key.rpartition(".")[2] not in parent:
        return _explain_key(key, parent)
    return Refusal(" ".join(str(error).split()))


def _explain_key(key: str, parent: DictConfig) -> Refusal:
    section, _, word = key.rpartition(".")
    if (CONFIGS / word).is_dir() and word not in parent:
        return Refusal(f"'{key}' is no option; '{word}' is a group of its own: choose one as '{word}=...'.")
    return Refusal(f"'{key}' is no option; {nearest(word, map(str, parent), section)}")


def _explain_choice(choice: Path, options: Sequence[str]) -> Refusal:
    group, name = choice.parent.as_posix(), choice.stem
    sentence = f"'{group}={name}' is no option; "
    for elsewhere in sorted(CONFIGS.glob(f"*/{name}.yaml")):
        return Refusal(f"{sentence}did you mean '{elsewhere.parent.name}={name}'?")
    return Refusal(sentence + nearest(name, options))
