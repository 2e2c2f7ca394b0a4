"""Turns a function into a command: Hydra composes its options, and a mistake becomes one sentence and exit code 2."""

import functools
import logging
import os
import re
import shlex
import signal
import sys
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import rendezvous
from ..console import broken_pipe_ends_quietly
from ..errors import UserError, of_files
from ..runs.directories import claim, remove_empty_run, share
from ..warning_filters import IGNORED_WARNINGS, ignore_warnings
from . import CONFIG_DIRS, ENGINE, PACKAGE
from .habits import with_habits
from .hydra_errors import as_user_error
from .hydra_versions import MAIN_OPTIONS, register_resolver

Config = dict[str, Any]


class EngineConfigs(SearchPathPlugin):
    """Lets Hydra search the engine's option files after the owner's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("engine", f"file://{CONFIG_DIRS[1]}")


class Termination(KeyboardInterrupt):
    """Raised at SIGTERM, which schedulers send."""


class Interruption(UserError):
    """The sentence and the exit code after Ctrl-C or SIGTERM."""

    def __init__(self, cause: KeyboardInterrupt) -> None:
        terminated = isinstance(cause, Termination)
        super().__init__(f"{'ended by SIGTERM' if terminated else 'interrupted'}: what was saved until now stays.")
        self.exit_code = 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def command(
    name: str, needs: tuple[str, ...], resumes: bool = False
) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Turns `main(config)` into a command with the options of `<name>.yaml`; `needs` are groups that must be there.

    With `resumes`, the option `resume=` continues an earlier run with its options. `main` gets the composed
    configuration as plain dicts and lists: no other code meets Hydra or OmegaConf. If `torchrun` or `srun` started
    several processes, rank 0 composes it for all of them.
    """

    def decorate(main: Callable[[Config], None]) -> Callable[[], None]:
        @functools.wraps(main)
        @broken_pipe_ends_quietly()
        def run() -> None:
            ignore_warnings(*IGNORED_WARNINGS)
            exit_codes = [0]
            started = rendezvous.started()
            if started is None or started.world_size == 1:  # otherwise SIGTERM ends a rank at once
                signal.signal(signal.SIGTERM, _terminate)
            if rendezvous.is_follower():
                _run_received_jobs(main, exit_codes)
            else:
                try:
                    _compose_and_run(main, name, needs, resumes, exit_codes)
                finally:
                    if started is not None and started.world_size > 1:
                        rendezvous.dismiss()
            if max(exit_codes):
                sys.exit(max(exit_codes))

        return run

    return decorate


def _compose_and_run(
    main: Callable[[Config], None],
    name: str,
    needs: tuple[str, ...],
    resumes: bool,
    exit_codes: list[int],
) -> None:
    def job(cfg: DictConfig) -> None:
        try:
            with broken_pipe_ends_quietly():
                main(_as_plain_data(cfg, needs))
        except UserError as refusal:  # in a sweep the other jobs go on
            exit_codes.append(_print_refusal(refusal))
            remove_empty_run(Path(HydraConfig.get().runtime.output_dir), f"{cfg.task_name}.log")

    job.__module__ = f"{PACKAGE}.{name}"  # Hydra takes the name of the job from it
    # Otherwise Hydra prints an error of its own and exits before the sentence below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_with_hydra()
    try:
        sys.argv[1:] = with_habits(sys.argv[1:], name)
        if resumes:
            from ..runs.resume import with_resumed  # it needs filelock, which the image of a server does not have

            sys.argv[1:] = with_resumed(sys.argv[1:])
        hydra.main(config_path=str(CONFIG_DIRS[0]), config_name=name, **MAIN_OPTIONS)(job)()
    except (UserError, HydraException, OmegaConfBaseException, ValueError) as error:
        sentence = as_user_error(error)
        if sentence is None:
            raise
        exit_codes.append(_print_refusal(sentence))
    except OSError as error:
        if (fault := of_files(error, Path.cwd())) is None:
            raise
        exit_codes.append(_print_refusal(fault))
    except KeyboardInterrupt as interrupt:
        exit_codes.append(_print_refusal(Interruption(interrupt)))


def _run_received_jobs(main: Callable[[Config], None], exit_codes: list[int]) -> None:
    """What every rank but the first does: it has no command line, no run directory and no log."""
    logging.disable(logging.CRITICAL)
    number, patience = 1, rendezvous.FOREVER
    while (config := rendezvous.receive_job(number, patience)) is not None:
        number, patience = number + 1, rendezvous.FOREVER
        try:
            main(config)
        except UserError as refusal:
            exit_codes.append(_print_refusal(refusal))
            patience = timedelta(minutes=1)  # rank 0 goes on with the next job by then, or waits for this rank
        except KeyboardInterrupt as interrupt:  # all ranks get it, and rank 0 prints the sentence
            exit_codes.append(Interruption(interrupt).exit_code)


def _terminate(number: int, frame: types.FrameType | None) -> None:
    raise Termination


@functools.cache
def register_with_hydra() -> None:
    """Adds the engine's options, the node `from_checkpoint` and the resolvers that the option files use."""
    Plugins.instance().register(EngineConfigs)
    register_resolver("package", lambda: PACKAGE)
    register_resolver("engine", lambda path: f"{PACKAGE}.{ENGINE.name}.{path}")
    # Commands that start from a checkpoint take any option of its data; which there are is known once it is read.
    node = OmegaConf.create({"data": {}})
    OmegaConf.set_struct(node.data, False)
    ConfigStore.instance().store("from_checkpoint", node)
    register_resolver("claim", claim, use_cache=True)
    register_resolver("share", share, use_cache=True)


def job_logging() -> Config:
    """Hydra's logging configuration, for ranks in which Hydra does not run."""
    if not HydraConfig.initialized():
        return {"version": 1}
    settings = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def given_options(*sections: str) -> str:
    """The options on the command line that belong to `sections`, quoted for a shell."""
    return shlex.join(option for option in HydraConfig.get().overrides.task if _section(option) in sections)


def given_options_except(*sections: str) -> list[str]:
    """The options on the command line that belong to none of `sections`; empty on all ranks but the first."""
    if not HydraConfig.initialized():
        return []
    return [option for option in HydraConfig.get().overrides.task if _section(option) not in sections]


def config_dirs() -> list[str]:
    """The option `--config-dir` of this command, for the command line of another."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]


def _section(option: str) -> str:
    return re.split("[.=]", option.lstrip("+~"))[0]


def compose(name: str, options: list[str]) -> Config:
    """The configuration of the command `name` with these options; for use within another command."""
    try:
        return _as_plain_data(hydra.compose(name, options), needs=())
    except (HydraException, OmegaConfBaseException) as error:
        raise as_user_error(error) or error from None


def _as_plain_data(cfg: DictConfig, needs: tuple[str, ...]) -> Config:
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise as_user_error(error) or error from None
    assert isinstance(config, dict)
    for group in needs:
        if not isinstance(config.get(group), dict):
            raise UserError(f"'{group}' is needed: it cannot be left out.")
    return {str(key): value for key, value in config.items()}


def interruption(number: int) -> KeyboardInterrupt:
    """What a signal of this number raises."""
    return Termination() if number == signal.SIGTERM else KeyboardInterrupt()


def _print_refusal(refusal: UserError) -> int:
    if rendezvous.is_first_to_say(str(refusal)):
        print(f"error: {refusal}", file=sys.stderr)
    return refusal.exit_code
