"""Trackers of experiments, whose failure is reported once and does not end the run."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import OmegaConf

from ..config.command_line import Config
from ..console import shown
from ..runs import run_record

log = logging.getLogger(__name__)

WANDB = "https://api.wandb.ai"
PATIENCE = 5.0  # seconds for a server to answer
# The option of each tracker that continues a run by its id.
RUN_ID_OPTIONS = {"wandb": "id", "mlflow": "run_id"}


def _delegate(name: str) -> Any:
    """A method that calls the method `name` of the wrapped logger, on the first rank alone."""

    @rank_zero_only
    def method(self: "FaultTolerantLogger", *args: Any, **kwargs: Any) -> None:
        self._try(lambda: getattr(self.logger, name)(*args, **kwargs))

    return method


class FaultTolerantLogger(Logger):
    """Passes everything to `logger`, until its first failure, which is reported."""

    def __init__(self, logger: Logger, title: str) -> None:
        super().__init__()
        self.logger, self.title, self.works = logger, title, True

    @property
    def name(self) -> str | None:
        return self.title

    @property
    def version(self) -> str | int | None:
        """The id of the run in the tracker; None after a failure."""
        run_id: str | int | None = self._try(lambda: self.logger.version)
        return run_id

    @property
    def experiment(self) -> Any:
        """The object of the tracker's own library; None after a failure."""
        return self._try(lambda: self.logger.experiment)  # type: ignore[attr-defined]

    log_metrics = _delegate("log_metrics")
    log_hyperparams = _delegate("log_hyperparams")
    save = _delegate("save")
    finalize = _delegate("finalize")
    after_save_checkpoint = _delegate("after_save_checkpoint")

    @rank_zero_only
    def finish(self) -> None:
        self._try(getattr(self.experiment, "finish", lambda: None))

    def _try(self, call: Callable[[], Any]) -> Any:
        if not self.works:
            return None
        try:
            return call()
        except Exception as error:  # a service and the network may raise anything
            self.works = False
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("warning     %s failed, and the run goes on without it: %s", self.title, reason)
            return None


def prepared_section(title: str, section: Mapping[str, Any], run_dir: Path) -> Mapping[str, Any] | None:
    """Adds the id of a run that is continued; None if the server does not answer and the run cannot be sent later."""
    ids = run_record.read(run_dir).get("trackers", {})
    if title in RUN_ID_OPTIONS and title in ids:
        section = {**section, RUN_ID_OPTIONS[title]: ids[title]}
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
    """Whether there is any answer, an error or that of a proxy included."""
    try:
        with urlopen(address, timeout=PATIENCE):
            return True
    except HTTPError:
        return True
    except (OSError, ValueError, HTTPException):
        return False


@contextmanager
def tracked(loggers: list[Logger], config: Config, run_dir: Path) -> Iterator[None]:
    """Logs the provenance before the first step, and ends the run in each tracker, so that another can begin."""
    _begin(loggers, config, run_dir)
    try:
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, FaultTolerantLogger):
                logger.finish()


@rank_zero_only
def _begin(loggers: list[Logger], config: Config, run_dir: Path) -> None:
    """Logs the resolved configuration, the commit and the versions, unless the tracker continues a run.

    The options of a run that goes on replace those that Hydra wrote at its start.
    """
    provenance = {"git": run_record.git_state(), "versions": run_record.versions()}
    ids: dict[str, str] = dict(run_record.read(run_dir).get("trackers", {}))
    for logger in loggers:
        if logger.name not in ids:
            logger.log_hyperparams({**config, **provenance})
            if logger.name in RUN_ID_OPTIONS and (run_id := logger.version) is not None:
                ids[logger.name] = str(run_id)
    run_record.write_start(run_dir, config.get("options"), provenance, ids)
    if config.get("resume"):
        OmegaConf.save(config["options"], run_dir / run_record.OVERRIDES)
        in_effect = {name: value for name, value in config.items() if name not in ("options", "restarts")}
        OmegaConf.save(in_effect, run_dir / run_record.CONFIG)  # Hydra has written that of a new run
