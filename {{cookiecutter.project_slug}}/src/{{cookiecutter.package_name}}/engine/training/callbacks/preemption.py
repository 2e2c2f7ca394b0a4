"""SIGTERM and Ctrl-C while a model trains: the step that is going on ends first, on all ranks the same one."""

import os
import signal
import threading
import time
import types
from typing import Any, cast

import torch
import torch.distributed as dist

# Seconds after which a signal means "at once": a terminal and a launcher send the same one after the other.
AGAIN = 2.0
ASKED_EVERY = 0.25  # seconds between two questions to the other ranks
PATIENCE = 30.0  # seconds without a batch, after which a rank waits for one that was lost


class SignalListener:
    """The signal that was heard, if any; the second time it ends the process as it would have done the first time."""

    def __init__(self) -> None:
        self.number, self.heard_at, self.last_batch = 0, 0.0, 0.0
        self.earlier: dict[int, Any] = {}
        self.pipe: tuple[int, int] | None = None

    def listen(self, is_one_of_several: bool) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.earlier = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        if is_one_of_several:
            self.pipe = os.pipe()
            os.set_blocking(self.pipe[1], False)
            signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self.pipe[0],), daemon=True).start()

    def ignore(self) -> None:
        """Signals mean again what they meant before `listen`."""
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        self.earlier = {}
        if self.pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self.pipe[1])
            self.pipe = None

    def _hear(self, number: int, frame: types.FrameType | None) -> None:
        if not self.number:
            self.number, self.heard_at = number, time.monotonic()
        elif time.monotonic() - self.heard_at > AGAIN:
            self.ignore()
            signal.raise_signal(number)

    def _watch(self, pipe: int) -> None:
        """A rank that waits for a lost one in torch's own code hears nothing: this thread does, and ends it."""
        number, heard_at = next(iter(os.read(pipe, 1)), 0), time.monotonic()
        while number and self.earlier:
            if time.monotonic() - max(self.last_batch, heard_at) > PATIENCE:
                os._exit(128 + number)
            time.sleep(0.1)
        os.close(pipe)


class Consensus:
    """What any rank wants, heard by all of them after the same batch, and without a step that waits for it.

    Every quarter of a second or so the ranks begin to take the maximum over all, and read it the next time.
    """

    def __init__(self, world_size: int, num_wishes: int) -> None:
        self.nothing = [0] * num_wishes
        # One of its own, on the CPU: the GPU need not come to an end for it. All ranks are members of it.
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if world_size > 1 else None
        self.work: dist.Work | None = None
        self.count, self.last, self.next, self.last_time = 0, 0, 1, time.monotonic()
        self.message = torch.zeros(num_wishes + 1, dtype=torch.int64)

    def after_batch(self, wishes: list[int]) -> list[int]:
        """Called by all ranks after the same batches."""
        if self.group is None:
            return wishes
        self.count += 1
        if self.count < self.next:
            return self.nothing
        heard, interval = self.nothing, 1
        if self.work is not None:
            self.work.wait()
            *heard, interval = self.message.tolist()
        per_batch = (time.monotonic() - self.last_time) / (self.count - self.last)
        self.last, self.last_time, self.next = self.count, time.monotonic(), self.count + interval
        self.message = torch.tensor([*wishes, min(1000, int(ASKED_EVERY / per_batch) + 1)])
        self.work = dist.all_reduce(self.message, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return heard

    def now(self, wish: int) -> int:
        """Waits for all ranks."""
        message = torch.tensor(wish)
        if self.group is not None:
            dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self.group)
        return int(message)
