"""Loggers that must not end a run: a tracking server that does not answer is told once, and the run goes on."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from ..config.command_line import Config
from ..console import shown
from ..runs import run_record
from ..runs.provenance import git_state, versions

log = logging.getLogger(__name__)

WANDB = "https://api.wandb.ai"
PATIENCE = 5.0  # seconds for a server to answer
# What goes on with a run of before, by its number there.
NUMBERS = {"wandb": "id", "mlflow": "run_id"}


class Steady(Logger):
    """Hands everything on to `logger`; after its first failure it says so, and leaves it alone."""

    def __init__(self, logger: Logger, title: str) -> None:
        super().__init__()
        self.logger, self.title, self.works = logger, title, True

    @property
    def name(self) -> str | None:
        return self.title

    @property
    def version(self) -> str | int | None:
        """The number of the run where it is tracked; None where nothing tracks it."""
        number: str | int | None = self._try(lambda: self.logger.version)
        return number

    @property
    def experiment(self) -> Any:
        """What the tracker's own library takes; None where it does not work. Lightning asks for it at every start."""
        return self._try(lambda: self.logger.experiment)  # type: ignore[attr-defined]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(lambda: self.logger.log_metrics(dict(metrics), step))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._try(lambda: self.logger.log_hyperparams(params, *args, **kwargs))

    @rank_zero_only
    def save(self) -> None:
        self._try(self.logger.save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._try(lambda: self.logger.finalize(status))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        self._try(lambda: self.logger.after_save_checkpoint(checkpoint_callback))

    @rank_zero_only
    def finish(self) -> None:
        self._try(getattr(self.experiment, "finish", lambda: None))

    def _try(self, call: Callable[[], Any]) -> Any:
        if not self.works:
            return None
        try:
            return call()
        except Exception as error:  # whatever a service and the way to it raise
            self.works = False
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("warning     %s failed, and the run goes on without it: %s", self.title, reason)
            return None


def prepared(title: str, section: Mapping[str, Any], run_dir: Path) -> Mapping[str, Any] | None:
    """With the number of a run that goes on; None where the server does not answer, and nothing is kept for it."""
    numbers = run_record.read(run_dir).get("trackers", {})
    if title in NUMBERS and title in numbers:
        section = {**section, NUMBERS[title]: numbers[title]}
    online = not section.get("offline") and os.environ.get("WANDB_MODE", "online") == "online"
    if title == "wandb" and online and not _answers(os.environ.get("WANDB_BASE_URL", WANDB)):
        log.warning("warning     wandb does not answer; to send this run later: wandb sync %s/wandb/*", shown(run_dir))
        return {**section, "offline": True}
    address = str(section.get("tracking_uri", ""))
    if address.startswith("http") and not _answers(address):
        log.warning("warning     %s at %s does not answer, and the run goes on without it", title, address)
        return None
    return section


def _answers(address: str) -> bool:
    """Whatever the answer: it is a proxy's, too, where one is set."""
    try:
        with urlopen(address, timeout=PATIENCE):
            return True
    except HTTPError:
        return True
    except (OSError, ValueError, HTTPException):
        return False


@contextmanager
def tracked(loggers: list[Logger], config: Config, run_dir: Path) -> Iterator[None]:
    """Logs what a run comes from before its first step, and ends it in each tracker, so that another can begin."""
    _begin(loggers, config, run_dir)
    try:
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, Steady):
                logger.finish()


@rank_zero_only
def _begin(loggers: list[Logger], config: Config, run_dir: Path) -> None:
    """The resolved configuration, the commit and the versions; a run that goes on in a tracker has them there."""
    provenance = {"git": git_state(), "versions": versions()}
    numbers: dict[str, str] = dict(run_record.read(run_dir).get("trackers", {}))
    for logger in loggers:
        if logger.name not in numbers:
            logger.log_hyperparams({**config, **provenance})
            if logger.name in NUMBERS and (number := logger.version) is not None:
                numbers[logger.name] = str(number)
    run_record.write_start(run_dir, config.get("options"), provenance, numbers)
