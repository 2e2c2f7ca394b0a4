"""Requests that arrive together are computed together, and each gets its own answer."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pytest

from {{ cookiecutter.package_name }}.engine.inference.signature import Arrays
from {{ cookiecutter.package_name }}.engine.serving.batching import Batcher, Limits
from {{ cookiecutter.package_name }}.engine.serving.metrics import Metrics
from {{ cookiecutter.package_name }}.engine.serving.payload import RequestError

Array = npt.NDArray[np.float64]

LIMITS = Limits(max_queue=1000, max_delay=0.0, timeout=10.0)


class Doubling:
    """A network that notes the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, inputs: Arrays) -> Arrays:
        assert self.may_run.wait(10)
        x = inputs["x"]
        self.sizes.append(len(x))
        if (x < 0).any():
            raise ValueError("negative")
        return {"doubled": 2 * x, "next": x + 1}


def run(
    scenario: Callable[[Batcher], Awaitable[None]],
    network: Doubling,
    limits: Limits,
    thread: bool,
    open_requests: Collection[object] = (),
) -> Metrics:
    metrics = Metrics(with_drift=False)

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            await scenario(Batcher(network, 64, limits, pool if thread else None, open_requests, metrics))

    asyncio.run(main())
    return metrics


def samples(first: int, size: int = 1) -> Array:
    return np.arange(first, first + size, dtype=np.float64)[:, np.newaxis]


async def outputs_of(batcher: Batcher, inputs: Arrays) -> Arrays:
    result: asyncio.Future[Arrays | Exception] = asyncio.get_running_loop().create_future()
    batcher.submit(inputs, result.set_result)
    if isinstance(found := await result, Exception):
        raise found
    return found


async def ask(batcher: Batcher, first: int, size: int = 1) -> None:
    outputs = await outputs_of(batcher, {"x": samples(first, size)})
    np.testing.assert_array_equal(outputs["doubled"], 2 * samples(first, size))
    np.testing.assert_array_equal(outputs["next"], samples(first + 1, size))


@pytest.mark.parametrize("thread", [False, True])
def test_waiting_requests_are_computed_at_once_up_to_the_largest_batch(thread: bool) -> None:
    network = Doubling()

    async def scenario(batcher: Batcher) -> None:
        await asyncio.gather(*(ask(batcher, 10 * index) for index in range(100)))
        await ask(batcher, 1)

    metrics = run(scenario, network, LIMITS, thread)
    assert network.sizes == [64, 36, 1]
    assert metrics.registry.get_sample_value("serving_batch_size_sum") == 101
    assert metrics.registry.get_sample_value("serving_queue_length") == 0


@pytest.mark.parametrize("thread", [False, True])
def test_requests_of_several_samples_are_never_split(thread: bool) -> None:
    network = Doubling()

    async def scenario(batcher: Batcher) -> None:
        await asyncio.gather(*(ask(batcher, 100 * index, size) for index, size in enumerate((30, 30, 30, 64, 1, 7))))

    run(scenario, network, LIMITS, thread)
    assert network.sizes == [60, 30, 64, 8]


def test_requests_that_arrive_while_the_thread_computes_wait_for_the_next_call() -> None:
    network = Doubling()

    async def scenario(batcher: Batcher) -> None:
        network.may_run.clear()
        first = asyncio.create_task(ask(batcher, 1))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(ask(batcher, index)) for index in range(5)]
        await asyncio.sleep(0.05)
        network.may_run.set()
        await asyncio.gather(first, *others)

    run(scenario, network, LIMITS, thread=True)
    assert network.sizes == [1, 5]


def test_delay_waits_for_others_but_not_once_the_batch_is_full() -> None:
    network = Doubling()

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(ask(batcher, 1))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, ask(batcher, 2))
        async with asyncio.timeout(5):
            await asyncio.gather(*(ask(batcher, index) for index in range(64)))

    run(scenario, network, Limits(1000, max_delay=0.5, timeout=10), thread=False)
    assert network.sizes == [2, 64]


def test_full_queue_refuses_and_continues() -> None:
    network = Doubling()

    async def scenario(batcher: Batcher) -> None:
        found = await asyncio.gather(*(ask(batcher, index) for index in range(12)), return_exceptions=True)
        refused = [error for error in found if isinstance(error, RequestError)]
        assert [found[index] for index in range(10)] == [None] * 10
        assert [(error.status, error.reason) for error in refused] == [(503, "queue_full")] * 2
        await ask(batcher, 1)

    run(scenario, network, Limits(10, 0.0, 10.0), thread=False)
    assert network.sizes == [10, 1]


def test_request_that_takes_too_long_is_given_up_and_not_computed() -> None:
    network = Doubling()

    async def scenario(batcher: Batcher) -> None:
        network.may_run.clear()
        found = await asyncio.gather(*(ask(batcher, index, 64) for index in range(2)), return_exceptions=True)
        assert [error.status for error in found if isinstance(error, RequestError)] == [504, 504]
        network.may_run.set()
        await ask(batcher, 3)

    run(scenario, network, Limits(10, 0.0, timeout=0.2), thread=True)
    assert network.sizes == [64, 1], "the second of them waited in vain"


def test_each_request_has_its_own_time() -> None:
    network = Doubling()

    async def wait(batcher: Batcher, delay: float) -> float:
        await asyncio.sleep(delay)
        start = perf_counter()
        with pytest.raises(RequestError, match=r"took longer than 0\.3 seconds"):
            await ask(batcher, 1, 64)
        return perf_counter() - start

    async def scenario(batcher: Batcher) -> None:
        network.may_run.clear()
        seconds = await asyncio.gather(*(wait(batcher, delay) for delay in (0.0, 0.1, 0.5)))
        assert min(seconds) >= 0.3
        network.may_run.set()
        await ask(batcher, 3)

    run(scenario, network, Limits(10, 0.0, timeout=0.3), thread=True)
    assert network.sizes == [64, 1]


@pytest.mark.parametrize("thread", [False, True])
def test_network_that_fails_fails_its_batch_alone(thread: bool) -> None:
    network = Doubling()

    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(ValueError, match="negative"):
            await outputs_of(batcher, {"x": samples(-5)})
        await ask(batcher, 1)

    run(scenario, network, LIMITS, thread)
    assert network.sizes == [1, 1]


def test_request_that_is_alone_does_not_wait() -> None:
    network, open_requests = Doubling(), [1]

    async def scenario(batcher: Batcher) -> None:
        coroutine = ask(batcher, 1)
        with pytest.raises(StopIteration):  # it ends without having waited once
            coroutine.send(None)
        open_requests.append(2)
        await asyncio.gather(ask(batcher, 1), ask(batcher, 2))

    metrics = run(scenario, network, LIMITS, thread=False, open_requests=open_requests)
    assert network.sizes == [1, 2]
    assert metrics.registry.get_sample_value("serving_batch_size_sum") == 3


def test_request_that_is_alone_waits_where_a_delay_was_asked_for() -> None:
    network = Doubling()

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(ask(batcher, 1))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, ask(batcher, 2))

    run(scenario, network, Limits(1000, max_delay=0.5, timeout=10), thread=False, open_requests=[1])
    assert network.sizes == [2]


@pytest.mark.parametrize("thread", [False, True])
def test_only_requests_of_the_same_shapes_are_computed_together(thread: bool) -> None:
    network = Doubling()

    async def ask_wide(batcher: Batcher, first: int, width: int) -> None:
        given = np.full((2, width), first, np.float64)
        outputs = await outputs_of(batcher, {"x": given})
        np.testing.assert_array_equal(outputs["doubled"], 2 * given)

    async def scenario(batcher: Batcher) -> None:
        await asyncio.gather(*(ask_wide(batcher, number, width) for number, width in enumerate((3, 5, 3, 7, 5, 3))))

    metrics = run(scenario, network, LIMITS, thread)
    assert network.sizes == [6, 4, 2], "the first shape, then that of the oldest request that still waits"
    assert metrics.registry.get_sample_value("serving_queue_length") == 0


def test_model_without_a_batch_axis_gets_each_request_by_itself() -> None:
    network, metrics = Doubling(), Metrics(with_drift=False)

    async def main() -> None:
        batcher = Batcher(network, 0, LIMITS, None, (), metrics)
        await asyncio.gather(*(ask(batcher, number, 2) for number in range(3)))

    asyncio.run(main())
    assert network.sizes == [2, 2, 2]
