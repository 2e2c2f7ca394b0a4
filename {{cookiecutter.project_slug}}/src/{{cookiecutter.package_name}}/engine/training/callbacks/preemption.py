"""SIGTERM and Ctrl-C while a model trains: the current step ends first, the same one on all ranks."""

import os
import signal
import threading
import time
import types
from typing import Any, cast

import torch
import torch.distributed as dist

# Seconds after which a second signal ends the process at once; a terminal and a launcher may send the same one twice.
REPEAT_AFTER = 2.0
POLL_SECONDS = 0.25  # between two reductions over the ranks
PATIENCE = 30.0  # seconds without a batch, after which another rank is taken for lost


class SignalListener:
    """Holds the signal that was received, if any; a second one ends the process as it would have without a listener."""

    def __init__(self) -> None:
        self.number, self.received_at, self.last_batch_at = 0, 0.0, 0.0
        self.previous_handlers: dict[int, Any] = {}
        self.pipe: tuple[int, int] | None = None

    def start(self, is_distributed: bool) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        self.previous_handlers = {number: signal.signal(number, self._receive) for number in signals}
        if is_distributed:
            self.pipe = os.pipe()
            os.set_blocking(self.pipe[1], False)
            signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self.pipe[0],), daemon=True).start()

    def stop(self) -> None:
        """Restores the handlers from before `start`."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers = {}
        if self.pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self.pipe[1])
            self.pipe = None

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if not self.number:
            self.number, self.received_at = number, time.monotonic()
        elif time.monotonic() - self.received_at > REPEAT_AFTER:
            self.stop()
            signal.raise_signal(number)

    def _watch(self, pipe: int) -> None:
        """Ends a process that waits for a lost rank in torch's code, where no Python signal handler runs."""
        number, received_at = next(iter(os.read(pipe, 1)), 0), time.monotonic()
        while number and self.previous_handlers:
            if time.monotonic() - max(self.last_batch_at, received_at) > PATIENCE:
                os._exit(128 + number)
            time.sleep(0.1)
        os.close(pipe)


class Consensus:
    """The maximum over all ranks of what each requests, known to all after the same batch, without blocking a step.

    About every `POLL_SECONDS` the ranks start a reduction, and read its result the next time.
    """

    message: torch.Tensor  # the requests, and the number of batches until the next reduction

    def __init__(self, world_size: int) -> None:
        # A group of its own on the CPU, so that the GPU is not waited for.
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if world_size > 1 else None
        self.work: dist.Work | None = None
        self.num_batches, self.last, self.next, self.last_time = 0, 0, 1, time.monotonic()

    def after_batch(self, requests: list[int]) -> list[int]:
        """Must be called by all ranks after the same batches."""
        if self.group is None:
            return requests
        self.num_batches += 1
        agreed, interval = [0] * len(requests), 1
        if self.num_batches < self.next:
            return agreed
        if self.work is not None:
            self.work.wait()
            *agreed, interval = self.message.tolist()
        per_batch = (time.monotonic() - self.last_time) / (self.num_batches - self.last)
        self.last, self.last_time, self.next = self.num_batches, time.monotonic(), self.num_batches + interval
        self.message = torch.tensor([*requests, min(1000, int(POLL_SECONDS / per_batch) + 1)])
        self.work = dist.all_reduce(self.message, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return agreed

    def now(self, request: int) -> int:
        """Waits for all ranks."""
        message = torch.tensor(request)
        if self.group is not None:
            dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self.group)
        return int(message)
