"""Dynamic batching: requests that arrive together are computed together."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ..inference.signature import Arrays
from .metrics import Metrics
from .payload import RequestError


@dataclass(frozen=True)
class Limits:
    """`max_delay` is how many seconds a request waits for others; 0 takes those that wait already."""

    max_queue: int
    max_delay: float
    timeout: float  # seconds that a request may wait and be computed


Done = Callable[[Arrays | Exception], None]


@dataclass(eq=False, slots=True)
class PendingRequest:
    inputs: Arrays  # each (B, ...)
    num_samples: int
    since: float

    @property
    def sides(self) -> list[tuple[int, ...]]:
        """The shapes without the batch axis."""
        return [array.shape[1:] for array in self.inputs.values()]


def num_samples_of(inputs: Arrays) -> int:
    first = next(iter(inputs.values()))
    return len(first) if first.ndim else 1


class Batcher:
    """Hands requests to `run` in their order of arrival, up to `max_batch_size` samples of the same shapes at once.

    With a `max_batch_size` of 0 no axis is a batch, and each request is computed by itself.

    With `thread`, the event loop works on while `run` computes, and requests that arrive meanwhile wait for the next
    call. Without it, a short call is spared the way to a thread and back. `open_requests` are all those that the HTTP
    server holds, also those that it has not read yet: a request that is alone is computed at once.
    """

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        max_batch_size: int,
        limits: Limits,
        thread: ThreadPoolExecutor | None,
        open_requests: Collection[object],
        metrics: Metrics,
    ) -> None:
        self._run, self._max_batch_size, self._limits, self._thread = run, max_batch_size, limits, thread
        self._open_requests, self._metrics = open_requests, metrics
        self._queue: deque[PendingRequest] = deque()
        self._unanswered: dict[PendingRequest, Done] = {}  # in their order of arrival, those in the thread too
        self._expiry: asyncio.TimerHandle | None = None  # for the first of them
        self._num_samples = 0  # in the queue
        self._is_running = False  # in the thread
        self._timer: asyncio.Handle | None = None  # for the next batch

    def submit(self, inputs: Arrays, done: Done) -> None:
        """Calls `done` once: with the outputs by name, with what `run` raised, or with a `RequestError`."""
        is_alone = len(self._open_requests) == 1 and not self._queue
        if is_alone and self._thread is None and not self._limits.max_delay:
            self._metrics.queued.observe(0)
            done(self._compute(num_samples_of(inputs), inputs))
            return
        if len(self._queue) >= self._limits.max_queue:
            done(RequestError(f"{len(self._queue)} requests wait already: try again later.", 503, "queue_full"))
            return
        request = PendingRequest(inputs, num_samples_of(inputs), perf_counter())
        self._queue.append(request)
        self._num_samples += request.num_samples
        self._unanswered[request] = done
        self._metrics.queue_length += 1
        self._schedule()
        if self._expiry is None:
            self._expire()

    def _compute(self, num_samples: int, inputs: Arrays) -> Arrays | Exception:
        start = perf_counter()
        try:
            return self._run(inputs)
        except Exception as error:
            return error
        finally:
            self._metrics.batch_size.observe(num_samples)
            self._metrics.computed.observe(perf_counter() - start)

    def _expire(self) -> None:
        """Ends requests that have timed out, and sets the timer for the next: one for each request would cost more."""
        now, self._expiry = perf_counter(), None
        for request in list(self._unanswered):
            if (seconds := request.since + self._limits.timeout - now) > 0:
                self._expiry = asyncio.get_running_loop().call_later(seconds, self._expire)
                return
            sentence = f"the request took longer than {self._limits.timeout:g} seconds: try again."
            self._finish(request, RequestError(sentence, 504, "timeout"))

    def _finish(self, request: PendingRequest, result: Arrays | Exception) -> None:
        if done := self._unanswered.pop(request, None):
            done(result)

    def _schedule(self) -> None:
        """Schedules the next batch: not at once, so that all requests that the event loop has read get into it."""
        if self._is_running or not self._queue:
            return
        is_full = self._num_samples >= self._max_batch_size
        if self._timer is not None:
            if not is_full:
                return
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        delay = 0 if is_full else self._queue[0].since + self._limits.max_delay - perf_counter()
        self._timer = loop.call_soon(self._run_next) if delay <= 0 else loop.call_later(delay, self._run_next)

    def _run_next(self) -> None:
        self._timer = None
        batch = self._take_batch()
        if not batch:
            self._schedule()
            return
        start = perf_counter()
        for request in batch:
            self._metrics.queued.observe(start - request.since)
        num_samples, inputs = sum(request.num_samples for request in batch), batch[0].inputs
        if len(batch) > 1:
            inputs = {name: np.concatenate([request.inputs[name] for request in batch]) for name in inputs}
        if self._thread is None:
            self._distribute(batch, self._compute(num_samples, inputs))
        else:
            self._is_running = True
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._thread, self._compute, num_samples, inputs)
            running.add_done_callback(lambda done: self._distribute(batch, done.result()))

    def _take_batch(self) -> list[PendingRequest]:
        """Takes requests that fit together from the queue, without those that were given up."""
        batch: list[PendingRequest] = []
        others: list[PendingRequest] = []
        num_samples, is_open = 0, True
        while self._queue and is_open:
            request = self._queue.popleft()
            if request not in self._unanswered:
                self._forget(request)
            elif batch and (not self._max_batch_size or request.sides != batch[0].sides):
                others.append(request)
            elif batch and num_samples + request.num_samples > self._max_batch_size:
                others.append(request)
                is_open = False
            else:
                self._forget(request)
                batch.append(request)
                num_samples += request.num_samples
                is_open = num_samples < self._max_batch_size
        self._queue.extendleft(reversed(others))
        return batch

    def _forget(self, request: PendingRequest) -> None:
        self._num_samples -= request.num_samples
        self._metrics.queue_length -= 1

    def _distribute(self, batch: list[PendingRequest], result: Arrays | Exception) -> None:
        self._is_running = False
        first = 0
        for request in batch:
            last = first + request.num_samples
            if isinstance(result, Exception) or len(batch) == 1:
                self._finish(request, result)
            else:
                self._finish(request, {name: array[first:last] for name, array in result.items()})
            first = last
        self._schedule()
