"""Starts one process a device on this machine. The configuration is composed once, here, and handed to them."""

import logging
import logging.config
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import set_start_method
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import SimpleQueue, get_context

from ..config.command_line import Config, Interruption, interruption, job_logging
from ..errors import UserError
from ..warning_filters import IGNORED_WARNINGS, ignore_warnings
from .launch import refusing

Result = TypeVar("Result")

# The launcher's own handlers stay installed after it has ended.
ENDED_BY_OTHERS = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM))
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
# Seconds for a checkpoint to be saved after a signal; a rank that waits for a lost one ends itself before.
SHUTDOWN = 600
ROOM = 60_000  # characters for what all workers say: a pipe that is full would keep its writer


class Report(NamedTuple):
    """What a worker says before it ends: its own error, or the refusal of a value."""

    attempt: int
    when: float
    rank: int
    text: str
    refused_with: int  # the exit code of a refusal; 0 for an error


class WorkerFailure(UserError):
    """One error for the whole job: that of the rank that failed first."""

    def __init__(self, failures: dict[int, ProcessFailure], reports: list[Report]) -> None:
        killed = [failure for failure in failures.values() if failure.exitcode < 0]
        number = -killed[0].exitcode if killed else 0
        if number in ENDED_BY_OTHERS or (killed and not reports):  # the other ranks only miss it
            text = f"rank {killed[0].local_rank} was ended by {signal.Signals(number).name}."
            self.exit_code = 128 + number
        elif reports:
            text = f"rank {reports[0].rank} raised an error: {reports[0].text}"
            self.exit_code = 1
        else:
            failure = next(iter(failures.values()))
            text = f"rank {failure.local_rank} ended with exit code {failure.exitcode}."
            self.exit_code = failure.exitcode
        super().__init__(text)


def run_in_processes(
    task: Callable[[Config], Result], config: Config, num_processes: int, max_restarts: int = 0
) -> Result:
    """Runs `task(config)` on every rank and returns what rank 0 returned; ends all ranks when one fails.

    After a failure all ranks start again, up to `max_restarts` times; the task finds its last checkpoint by itself.
    """
    for name in logging.root.manager.loggerDict:  # torch would say the same in its own words, once a rank
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ranks that share the launcher's store find what the lost ones have left there, and wait for them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    queue: SimpleQueue[Report] = get_context("spawn").SimpleQueue()
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id="ddp",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # else the name of the host, which need not resolve
        max_restarts=max_restarts,
        start_method="spawn",
        # Nothing on disk, which a killed launcher could not remove: errors come through the queue.
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        shutdown_timeout=SHUTDOWN,
    )
    with _signal_handlers_kept():
        try:
            room = ROOM // (num_processes * (max_restarts + 1))
            results = elastic_launch(launch, _worker)(task, config, job_logging(), queue, room)
        except ChildFailedError as error:
            reports = _drained(queue)
            for failure in error.failures.values():
                if not reports and failure.exitcode - 128 in (signal.SIGINT, signal.SIGTERM):  # a rank was signalled
                    raise interruption(failure.exitcode - 128) from None
            raise _first_cause(error.failures, reports) from None
        except SignalException as error:
            raise interruption(error.sigval) from None
    return cast(Result, results[0])


def become_rank(num_on_machine: int) -> None:
    """Signals end a rank at once until its training begins; whoever started it ends the others and says so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if "OMP_NUM_THREADS" not in os.environ:  # each process would start a thread a core
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_on_machine))


def _worker(
    task: Callable[[Config], Any], config: Config, log_settings: dict[str, Any], queue: "SimpleQueue[Report]", room: int
) -> Any:
    """Rank 0 alone writes the log; a refusal travels home as text, because it is no failure of the worker."""
    become_rank(int(os.environ["LOCAL_WORLD_SIZE"]))
    set_start_method(None, force=True)  # the loader's workers start as they do everywhere, not as this one did
    ignore_warnings(*IGNORED_WARNINGS)
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if rank == 0:
        logging.config.dictConfig(log_settings)
    else:
        logging.disable(logging.CRITICAL)
    try:
        return refusing(task, config)
    except UserError as refusal:
        queue.put(Report(attempt, time.time(), rank, str(refusal), refused_with=refusal.exit_code))
        raise SystemExit(refusal.exit_code) from None  # the other ranks may not have refused, and would wait
    except KeyboardInterrupt as interrupt:
        raise SystemExit(Interruption(interrupt).exit_code) from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}".strip()
        queue.put(Report(attempt, time.time(), rank, _shortened(text, room), refused_with=0))
        raise SystemExit(1) from None  # torch would keep what is raised in a file, and leave it behind


def _shortened(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room // 3]}\n...\n{text[-room * 2 // 3 :]}"


def _drained(queue: "SimpleQueue[Report]") -> list[Report]:
    """Of the last attempt, the earliest first."""
    reports = []
    while not queue.empty():
        reports.append(queue.get())
    last = max((report.attempt for report in reports), default=0)
    return sorted(report for report in reports if report.attempt == last)


def _first_cause(failures: dict[int, ProcessFailure], reports: list[Report]) -> UserError:
    """A rank that refuses a value ends without failure, and leaves the others to fail."""
    for report in reports:
        if report.refused_with:
            refusal = UserError(report.text)
            refusal.exit_code = report.refused_with
            return refusal
    return WorkerFailure(failures, reports)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
