"""Runs a task on every device: here, in processes that this command starts, or in those that torchrun or srun started.

The configuration is composed once and handed to the ranks as plain data.
"""

import logging
import logging.config
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import set_start_method
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import SimpleQueue, get_context

from .. import rendezvous
from ..config.command_line import Config, Interruption, interruption, job_logging
from ..console import broken_pipe_ends_quietly
from ..cores import num_cores
from ..errors import UserError, lost_worker, of_files
from ..warning_filters import IGNORED_WARNINGS, ignore_warnings
from .plan import Plan, make_plan

Result = TypeVar("Result")
Task = Callable[[Config, Plan], Result]

# A rank that one of these ended was killed from outside: it did not fail by itself.
KILL_SIGNALS = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM))
# torch's launcher replaces the handlers of these, and does not restore them.
HANDLED_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]
# Seconds for a checkpoint to be saved after a signal; a rank that waits for a lost one ends itself before.
SHUTDOWN = 600
REPORT_ROOM = 60_000  # characters for the reports of all workers: a pipe that is full would block its writer


def launch(task: Task[Result], config: Config) -> Result:
    """Runs `task(config, plan)` in one process for each device of the strategy, and returns what rank 0 returned."""
    plan, started = make_plan(config), rendezvous.started()
    if started is None and plan.num_processes > 1:
        return _start_ranks(task, config, plan)
    if started is None or started.world_size == 1:
        return with_user_errors(task, config, plan)
    if started.rank == 0:
        rendezvous.send_job(config)
    try:
        return _run_rank(task, config, plan, started.per_node)
    except UserError:
        raise
    except Exception:  # the rank that fails first says why; those that miss it then say nothing
        if rendezvous.is_first_to_say("what went wrong"):
            raise
        raise SystemExit(1) from None


def _run_rank(task: Task[Result], config: Config, plan: Plan, num_on_machine: int) -> Result:
    """Runs the task as one of several ranks, whoever started them.

    Signals end a rank at once until its training begins; whoever started it ends the others and says so.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if "OMP_NUM_THREADS" not in os.environ:  # each process would start a thread a core
        torch.set_num_threads(max(1, num_cores() // num_on_machine))
    return with_user_errors(task, config, plan)


def with_user_errors(task: Task[Result], config: Config, plan: Plan) -> Result:
    """Runs the task; what Lightning, torch or the disk say of a user's mistake becomes a `UserError`."""
    try:
        with broken_pipe_ends_quietly():
            return task(config, plan)
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except OSError as error:
        if (fault := of_files(error, Path(config["paths"]["output_dir"]))) is None:
            raise
        raise fault from error
    except SystemExit as error:  # Lightning's way to end after Ctrl-C, with exit code 1
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    except RuntimeError as error:
        if (lost := lost_worker(error)) is not None:  # the signal of its end may come at any moment
            raise lost from error
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise UserError(" ".join(str(error).split())) from error


class Report(NamedTuple):
    """What a rank hands over before it ends: its own error, or the refusal of a value."""

    attempt: int
    when: float
    rank: int
    text: str
    refused_with: int  # the exit code of a refusal; 0 for an error


class WorkerFailure(UserError):
    """One error for all ranks: that of the rank that failed first."""

    def __init__(self, failures: dict[int, ProcessFailure], reports: list[Report]) -> None:
        killed = [failure for failure in failures.values() if failure.exitcode < 0]
        number = -killed[0].exitcode if killed else 0
        if number in KILL_SIGNALS or (killed and not reports):  # the other ranks only lost their peer
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


def _start_ranks(task: Task[Result], config: Config, plan: Plan) -> Result:
    """Starts all ranks on this machine, and ends all of them when one fails.

    After a failure all ranks start again, up to `max_restarts` times; the task finds its last checkpoint by itself.
    """
    for name in logging.root.manager.loggerDict:  # torch would say the same in its own words, once a rank
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ranks that share the launcher's store would find what lost ranks have left there, and wait for them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    queue: SimpleQueue[Report] = get_context("spawn").SimpleQueue()
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=plan.num_processes,
        run_id="ddp",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # else the name of the host, which need not resolve
        max_restarts=plan.strategy.max_restarts,
        start_method="spawn",
        # Nothing on disk, which a killed launcher could not remove: errors come through the queue.
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        shutdown_timeout=SHUTDOWN,
    )
    room = REPORT_ROOM // (plan.num_processes * (plan.strategy.max_restarts + 1))
    with _signal_handlers_restored():
        try:
            results = elastic_launch(settings, _spawned_rank)(task, config, plan, job_logging(), queue, room)
        except ChildFailedError as error:
            reports = _reports_of_last_attempt(queue)
            for failure in error.failures.values():
                if not reports and failure.exitcode - 128 in (signal.SIGINT, signal.SIGTERM):  # a rank was signalled
                    raise interruption(failure.exitcode - 128) from None
            raise _first_cause(error.failures, reports) from None
        except SignalException as error:
            raise interruption(error.sigval) from None
    return cast(Result, results[0])


def _spawned_rank(
    task: Task[Any],
    config: Config,
    plan: Plan,
    log_settings: dict[str, Any],
    queue: "SimpleQueue[Report]",
    room: int,
) -> Any:
    """The entry of a process that `_start_ranks` started.

    Rank 0 alone writes the log. A `UserError` is handed over as text, because it is no failure of the process.
    """
    set_start_method(None, force=True)  # the loader's workers start as they do everywhere, not as this process did
    ignore_warnings(*IGNORED_WARNINGS)
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if rank == 0:
        logging.config.dictConfig(log_settings)
    else:
        logging.disable(logging.CRITICAL)
    try:
        return _run_rank(task, {**config, "restarts": attempt}, plan, plan.num_processes)
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


def _reports_of_last_attempt(queue: "SimpleQueue[Report]") -> list[Report]:
    """Empties the queue; the earliest report first."""
    reports = []
    while not queue.empty():
        reports.append(queue.get())
    last = max((report.attempt for report in reports), default=0)
    return sorted(report for report in reports if report.attempt == last)


def _first_cause(failures: dict[int, ProcessFailure], reports: list[Report]) -> UserError:
    """The refusal of a value, if there is one: its rank ends without failure, and leaves the others to fail."""
    for report in reports:
        if report.refused_with:
            refusal = UserError(report.text)
            refusal.exit_code = report.refused_with
            return refusal
    return WorkerFailure(failures, reports)


@contextmanager
def _signal_handlers_restored() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
