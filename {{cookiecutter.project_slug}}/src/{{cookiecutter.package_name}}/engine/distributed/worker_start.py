"""Starts the worker processes of a DataLoader anew if they hang before they have begun.

Python 3.11 can hang in the child of a fork (`_PyThreadState_DeleteExcept` waits for a lock), if another thread of the
parent, such as one of gloo, held that lock of the interpreter at this moment. The parent would wait for ever.
"""

import logging
import multiprocessing
from collections.abc import Callable
from typing import Any

from torch._C import _remove_worker_pids
from torch.utils import data

from ..errors import Fault

FORK_SECONDS = 60.0  # after which a forked process that has not begun is taken to hang; it takes milliseconds
NUM_STARTS = 3
log = logging.getLogger(__name__)


class NotedStart:
    """The `worker_init_fn` of a loader: notes that a process has begun, then calls that of the owner."""

    def __init__(self, init: Callable[[int], object] | None, context: Any) -> None:
        self.init = init
        self.begun = (context or multiprocessing).Semaphore(0)
        self.is_forked = (context or multiprocessing).get_start_method() == "fork"

    def __call__(self, worker_id: int) -> None:
        self.begun.release()
        if self.init is not None:
            self.init(worker_id)


def with_workers(loader: data.DataLoader[Any], create: Callable[[], Any]) -> Any:
    """Returns the iterator that `create` makes, once all its processes have begun; `loader` is as if made once.

    Raises `Fault` if some hang again and again.
    """
    start = loader.worker_init_fn
    if not isinstance(start, NotedStart) or not start.is_forked or loader._iterator is not None:
        return create()
    source: Any = loader.batch_sampler or loader.sampler
    before, state = dict(vars(source)), loader.generator.get_state()
    for _ in range(NUM_STARTS):
        iterator = create()
        if all(start.begun.acquire(timeout=FORK_SECONDS) for _ in range(loader.num_workers)):
            return iterator
        log.warning("warning     a process that reads samples hung before it began: all are started anew")
        _remove_worker_pids(id(iterator))  # torch would raise an error for each that is killed
        iterator._worker_pids_set = False
        for process in iterator._workers:
            process.kill()
        while start.begun.acquire(block=False):
            pass
        loader._iterator = None
        vars(source).update(before)
        loader.generator.set_state(state)
    raise Fault("the processes that read samples hang before they begin: take data.num_workers=0, or a newer Python.")
