"""The version of a model that is served, and how the server moves to another version while it answers."""

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadBundle
from ..inference.answers import figure
from ..inference.inputs import reason_of
from ..inference.runtime import MANIFEST, Bundle, difference, first_samples, read_golden, versions
from ..inference.signature import Array, Arrays, reader_of
from .batching import Batcher, Done, Limits
from .metrics import Metrics
from .payload import RequestError
from .protocol import ModelMetadata

log = logging.getLogger(__name__)

# To hand a call to a thread costs about 0.1 ms; a longer call would stop all other requests meanwhile.
MAX_INLINE_MS = 1.0
NUM_WARM_UP_CALLS = 20
MAX_EXAMPLE = 4096  # numbers of a sample that the page shows
ARRAYS_PAGE = "arrays.html"

Fingerprint = frozenset[tuple[str, int, int]]


class ServedModel:
    """A bundle that has reproduced its golden answers and is warm; raises `BadBundle` if it has not.

    `tolerance` is that of the manifest unless given; other providers than the CPU's may need a larger one.
    """

    def __init__(
        self,
        bundle: Bundle,
        limits: Limits,
        open_requests: Collection[object],
        metrics: Metrics,
        tolerance: float | None = None,
    ) -> None:
        self.bundle, self.metadata = bundle, ModelMetadata(bundle.manifest)
        golden, expected = read_golden(bundle.folder)
        _check_golden(bundle, golden, expected, bundle.manifest["tolerance"] if tolerance is None else tolerance)
        self._example = first_samples(golden, 1) if bundle.signature.max_batch_size else golden
        self.latency_ms = _warm_up(bundle, golden, self._example)
        thread = ThreadPoolExecutor(1, "inference") if self.latency_ms > MAX_INLINE_MS else None
        self._batcher = Batcher(bundle.run, bundle.signature.max_batch_size, limits, thread, open_requests, metrics)

    def describe(self) -> dict[str, Any]:
        """Describes the inputs for the page, with a real sample where they are no pictures."""
        signature = self.bundle.signature
        tensor, labels = signature.inputs[0], [label for output in signature.outputs for label in output.labels]
        described = {
            "name": self.metadata.name,
            "version": self.metadata.version,
            "inputs": [f"{tensor.name}: {tensor}" for tensor in signature.inputs],
            "labels": labels,
        }
        sample = {name: (array[0] if signature.max_batch_size else array) for name, array in self._example.items()}
        if tensor.columns:
            row = [None if np.isnan(value) else value for value in sample[tensor.name].tolist()]
            return {**described, "columns": [column.to_dict() for column in tensor.columns], "example": row}
        is_large = any(array.size > MAX_EXAMPLE for array in sample.values())
        example = None if is_large else {name: _written(array) for name, array in sample.items()}
        return {**described, "columns": [], "example": example}

    @property
    def page(self) -> str:
        """The name of the page for people."""
        tensor = self.bundle.signature.person_input
        return reader_of(tensor).PAGE if tensor else ARRAYS_PAGE

    def submit(self, inputs: Arrays, done: Done) -> None:
        """Calls `done` with outputs by name, or with a `RequestError` for an overload or sizes of no use."""
        self._batcher.submit(inputs, lambda result: done(self._explained(result)))

    async def infer(self, inputs: Arrays) -> Arrays:
        """Computes outputs by name of inputs by name; raises what `submit` reports."""
        outputs: asyncio.Future[Arrays | Exception] = asyncio.get_running_loop().create_future()

        def done(result: Arrays | Exception) -> None:
            if not outputs.cancelled():
                outputs.set_result(result)

        self.submit(inputs, done)
        if isinstance(result := await outputs, Exception):
            raise result
        return result

    def _explained(self, result: Any) -> Any:
        # A free axis may be longer than the network takes, which ONNX Runtime alone knows.
        is_known = not isinstance(result, Exception) or isinstance(result, RequestError)
        if is_known or self.bundle.signature.max_elements is not None:
            return result
        return RequestError(f"the model cannot compute inputs of these sizes: {reason_of(result)[:200]}.")


class ModelVersions:
    """`current` is the newest version in `folder` that passes its checks, or the bundle `folder` itself.

    A request reads `current` once, so it is answered by one version. Raises `BadBundle` if no version can be served at
    the start, and passes on other errors of `load`.
    """

    def __init__(self, folder: Path, load: Callable[[Path], ServedModel], metrics: Metrics) -> None:
        self._folder, self._load, self._metrics = folder, load, metrics
        self._is_pinned = (folder / MANIFEST).exists()
        self._failed: dict[int, Fingerprint] = {}  # versions that failed, with the state of their files
        self.current = load(folder) if self._is_pinned else self._load_first()
        metrics.set_model(self.current.bundle.manifest)

    async def watch(self, poll_seconds: float | None, reload: asyncio.Event) -> None:
        """Looks for another version every `poll_seconds`, and when `reload` is set, until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(poll_seconds):
                    await reload.wait()
            except TimeoutError:
                pass
            retry = reload.is_set()
            reload.clear()
            await self._update(retry)

    async def _update(self, retry: bool) -> None:
        """Moves to the newest version that passes its checks, which is an earlier one if the current one is gone.

        A version that failed is tried again once its files have changed, or with `retry`. If none passes, the current
        version stays.
        """
        if self._is_pinned:
            log.info("kept        version %s, which bundle= names", self.current.metadata.version)
            return
        if retry:
            self._failed.clear()
        for version in self._candidates():
            if str(version) == self.current.metadata.version:
                return
            try:  # in a thread: requests are answered meanwhile
                model = await asyncio.to_thread(self._load, self._folder / str(version))
            except Exception as error:  # a copy that is not complete, or was removed again, raises any error
                self._leave_out(version, error)
                continue
            log.info("moved       from version %s to %s", self.current.metadata.version, version)
            self.current = model
            self._metrics.set_model(model.bundle.manifest)
            return

    def _load_first(self) -> ServedModel:
        last_error: BadBundle | None = None
        for version in self._candidates():
            try:
                return self._load(self._folder / str(version))
            except BadBundle as error:
                last_error = error
                self._leave_out(version, error)
        raise last_error or BadBundle(f"{self._folder} holds no version: export one, or give bundle=artifacts/<name>.")

    def _candidates(self) -> list[int]:
        """Returns the versions, newest first, without those that failed and have not changed since."""
        try:
            found = sorted(versions(self._folder), reverse=True)
        except OSError as error:
            log.warning("kept        version %s: %s", self.current.metadata.version, error)
            return []
        return [version for version in found if self._failed.get(version) != _fingerprint(self._folder / str(version))]

    def _leave_out(self, version: int, error: Exception) -> None:
        self._failed[version] = _fingerprint(self._folder / str(version))
        self._metrics.failed_reloads.inc()
        log.warning("left out    version %d: %s", version, " ".join(str(error).split()))


def _written(array: Array) -> Any:
    """Returns lists of numbers, with as many digits as float32 has."""
    return (np.vectorize(figure)(array) if array.dtype.kind == "f" and array.size else array).tolist()


def _check_golden(bundle: Bundle, inputs: Arrays, expected: Arrays, tolerance: float) -> None:
    if size := bundle.signature.max_batch_size:
        inputs, expected = ({name: array[:size] for name, array in kind.items()} for kind in (inputs, expected))
    for name, output in bundle(inputs).items():
        worst = difference(output, expected[name])
        if not worst <= tolerance:
            raise BadBundle(
                f"{bundle.folder} answers its golden samples otherwise than the trained model: {name} differ by "
                f"{worst:.2g}, {tolerance:.2g} is allowed (tolerance=)."
            )


def _warm_up(bundle: Bundle, golden: Arrays, sample: Arrays) -> float:
    """Returns the median latency of one sample in ms."""
    if bundle.signature.max_batch_size:
        bundle(first_samples(golden, bundle.signature.max_batch_size))
    times = []
    for _ in range(NUM_WARM_UP_CALLS):
        start = time.perf_counter()
        bundle(sample)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def _fingerprint(folder: Path) -> Fingerprint:
    """Returns names, sizes and times of the files; nothing for a folder that is gone."""
    try:
        found = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return frozenset()
    return frozenset((name, status.st_size, status.st_mtime_ns) for name, status in found)
