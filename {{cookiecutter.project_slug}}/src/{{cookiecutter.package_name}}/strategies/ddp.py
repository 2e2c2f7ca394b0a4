"""`strategy=ddp`: one process a device. The configuration is composed once, here, and handed to the workers."""

import logging
import logging.config
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..cli import Config, job_logging
from ..quiet import QUIET, quieten
from ..refusal import Refusal
from .launch import refusing

Result = TypeVar("Result")

# The launcher's own handlers stay installed after it has ended.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]


class WorkerFailure(Refusal):
    """One error for the whole job: that of the rank that failed first."""

    def __init__(self, failure: ProcessFailure) -> None:
        killed = failure.exitcode < 0
        reason = f"was killed by signal {-failure.exitcode}" if killed else "raised an error"
        message = failure.message.get("message", "") if isinstance(failure.message, dict) else failure.message
        stack = failure.error_file_data.get("message", {}) if failure.error_file_data else {}
        trace = stack.get("extraInfo", {}).get("py_callstack", "") if isinstance(stack, dict) else ""
        super().__init__(f"rank {failure.local_rank} {reason}: {message}\n{trace}".strip())
        self.exit_code = 128 - failure.exitcode if killed else 1


def run_in_processes(task: Callable[[Config], Result], config: Config, num_processes: int) -> Result:
    """Runs `task(config)` on every rank and returns what rank 0 returned; ends all ranks when one fails."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # else a traceback a rank
    with tempfile.TemporaryDirectory(prefix="ddp-") as folder, _signal_handlers_kept():
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id="ddp",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",  # else the name of the host, which need not resolve
            max_restarts=0,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=15,
        )
        try:
            results = elastic_launch(launch, _worker)(task, config, job_logging())
        except ChildFailedError as error:
            raise WorkerFailure(min(error.failures.values(), key=lambda failure: failure.timestamp)) from None
        except SignalException as error:
            raise SystemExit(128 + error.sigval.value) from None
    refusal, result = results[0]
    if refusal is not None:
        raise Refusal(refusal)
    return cast(Result, result)


def _worker(task: Callable[[Config], Any], config: Config, log_settings: dict[str, Any]) -> tuple[str | None, Any]:
    """Rank 0 alone writes the log; a refusal travels home as text, because it is no failure of the worker."""
    quieten(*QUIET)
    if "OMP_NUM_THREADS" not in os.environ:  # each process would start a thread a core
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    if os.environ["RANK"] == "0":
        logging.config.dictConfig(log_settings)
    else:
        logging.disable(logging.CRITICAL)
    try:
        return None, refusing(task, config)
    except Refusal as refusal:
        return str(refusal), None


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
