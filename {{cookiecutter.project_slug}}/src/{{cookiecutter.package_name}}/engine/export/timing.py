"""Times networks: one call, or files in processes of their own that take turns."""

import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

from ..inference.runtime import first_samples, read_golden
from ..inference.signature import Array, Arrays
from ..isolation import IsolatedError, IsolatedProcess
from .contract import GateFailure
from .formats import Run, exporter

NUM_WARMUP_CALLS, MIN_CALLS = 3, 5
NUM_TIMED, MAX_SECONDS = 200, 2.0


def median_latency_ms(run: Run, inputs: Arrays) -> float:
    """Times up to 200 calls within about two seconds."""
    run(inputs)
    times: list[float] = []
    while len(times) < NUM_TIMED and (len(times) < 3 or sum(times) < MAX_SECONDS):
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


class Timer(IsolatedProcess):
    """The process of one file, for a `with` block."""

    def __init__(self, format_name: str, file: Path, bundle: Path, num_threads: int) -> None:
        self.loaded: dict[str, Any] = {
            "format_name": format_name,
            "file": str(file),
            "bundle": str(bundle),
            "num_threads": num_threads,
        }

    def time(self, batch_size: int, seconds: float) -> list[float]:
        """Returns the seconds of each call; raises `GateFailure` if the file cannot be run."""
        try:
            times: list[float] = self.call(time_file, **self.loaded, batch_size=batch_size, seconds=seconds)
        except IsolatedError as error:
            raise GateFailure(f"{Path(self.loaded['file']).name} cannot be timed: {error}") from error
        return times


def time_file(
    format_name: str, file: str, bundle: str, num_threads: int, batch_size: int, seconds: float
) -> list[float]:
    """The isolated part of `Timer.time`; at least five calls, however long they take."""
    run, inputs = _loaded(format_name, file, bundle, num_threads)
    batch = first_samples(inputs, batch_size)
    for _ in range(NUM_WARMUP_CALLS):
        run(batch)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return times


@cache
def _loaded(format_name: str, file: str, bundle: str, num_threads: int) -> tuple[Run, dict[str, Array]]:
    inputs, _ = read_golden(Path(bundle))
    return exporter(format_name).load(Path(file), num_threads=num_threads), inputs
