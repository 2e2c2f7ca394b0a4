"""Requests that arrive together are computed together."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

from .metrics import Metrics
from .tensors import Array, Rejected

Arrays = tuple[Array, ...]


@dataclass(frozen=True)
class Limits:
    """`max_delay` is how long a request waits for others, in seconds: 0 takes what already waits."""

    max_queue: int
    max_delay: float
    timeout: float  # seconds that a request may wait and be computed


@dataclass
class OpenRequests:
    """The requests that the HTTP server holds, also those that it has not begun to read."""

    tasks: Collection[object] = ()


@dataclass(frozen=True)
class Waiting:
    inputs: Array  # (B, ...)
    outputs: "asyncio.Future[Arrays]"
    since: float


class Batcher:
    """Hands requests to `run` in the order in which they came, up to `max_batch_size` samples at once.

    One that is alone is computed at once, unless it is to wait for others.

    With `thread` a call of `run` does not keep the event loop from its other work, and what comes meanwhile waits for
    the next call; without, it spares a short call the way to a thread and back.
    """

    def __init__(
        self,
        run: Callable[[Array], Arrays],
        max_batch_size: int,
        limits: Limits,
        thread: ThreadPoolExecutor | None,
        open_requests: OpenRequests,
        metrics: Metrics,
    ) -> None:
        self._run, self._limits, self._thread, self._metrics = run, limits, thread, metrics
        self._open = open_requests
        self._max_batch_size = max_batch_size
        self._queue: deque[Waiting] = deque()
        self._num_samples = 0  # in the queue
        self._is_running = False  # in the thread
        self._wake_up: asyncio.Handle | None = None

    async def __call__(self, inputs: Array) -> Arrays:
        """Raw inputs `(B, ...)` to the outputs of `run`; raises `Rejected` for a full queue, or when it takes long."""
        is_alone = len(self._open.tasks) == 1 and not self._queue
        if is_alone and self._thread is None and not self._limits.max_delay:
            self._metrics.queued.observe(0)
            return self._compute(inputs)
        if len(self._queue) >= self._limits.max_queue:
            raise Rejected(f"{len(self._queue)} requests wait already: try again later.", 503, "queue_full")
        loop = asyncio.get_running_loop()
        waiting = Waiting(inputs, loop.create_future(), perf_counter())
        self._queue.append(waiting)
        self._num_samples += len(inputs)
        self._metrics.num_waiting += 1
        self._call_soon()
        timer = loop.call_later(self._limits.timeout, self._give_up, waiting)
        try:
            return await waiting.outputs
        finally:
            timer.cancel()

    def _compute(self, inputs: Array) -> Arrays:
        start = perf_counter()
        try:
            return self._run(inputs)
        finally:
            self._metrics.batch_size.observe(len(inputs))
            self._metrics.computed.observe(perf_counter() - start)

    def _give_up(self, waiting: Waiting) -> None:
        if not waiting.outputs.done():
            seconds = self._limits.timeout
            sentence = f"the request took longer than {seconds:g} seconds: try again."
            waiting.outputs.set_exception(Rejected(sentence, 504, "timeout"))

    def _call_soon(self) -> None:
        """Not at once: what the event loop has read by now is in the queue then."""
        if self._is_running or not self._queue:
            return
        is_full = self._num_samples >= self._max_batch_size
        if self._wake_up is not None:
            if not is_full:
                return
            self._wake_up.cancel()
        loop = asyncio.get_running_loop()
        delay = 0 if is_full else self._queue[0].since + self._limits.max_delay - perf_counter()
        self._wake_up = loop.call_soon(self._next) if delay <= 0 else loop.call_later(delay, self._next)

    def _next(self) -> None:
        self._wake_up = None
        batch = self._take()
        if not batch:
            self._call_soon()
            return
        start = perf_counter()
        for waiting in batch:
            self._metrics.queued.observe(start - waiting.since)
        inputs = batch[0].inputs if len(batch) == 1 else np.concatenate([waiting.inputs for waiting in batch])
        if self._thread is None:
            done: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
            try:
                done.set_result(self._compute(inputs))
            except Exception as error:
                done.set_exception(error)
            self._answer(batch, done)
        else:
            self._is_running = True
            running = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, inputs)
            running.add_done_callback(partial(self._answer, batch))

    def _take(self) -> list[Waiting]:
        """Those that fit together; whoever gave up waiting is left out."""
        batch: list[Waiting] = []
        num_samples = 0
        while self._queue and num_samples + len(self._queue[0].inputs) <= self._max_batch_size:
            waiting = self._queue.popleft()
            self._num_samples -= len(waiting.inputs)
            self._metrics.num_waiting -= 1
            if not waiting.outputs.done():
                batch.append(waiting)
                num_samples += len(waiting.inputs)
        return batch

    def _answer(self, batch: list[Waiting], done: "asyncio.Future[Arrays]") -> None:
        self._is_running = False
        error, first = done.exception(), 0
        for waiting in batch:
            last = first + len(waiting.inputs)
            if not waiting.outputs.done():
                if error is not None:
                    waiting.outputs.set_exception(error)
                else:
                    waiting.outputs.set_result(tuple(array[first:last] for array in done.result()))
            first = last
        self._call_soon()
