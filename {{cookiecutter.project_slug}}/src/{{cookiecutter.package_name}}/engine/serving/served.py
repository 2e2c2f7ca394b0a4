"""A bundle in use: it has given its golden answers, and is warm."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..inference.runtime import BadBundle, Bundle, difference, read_golden
from .batching import Arrays, Batcher, Limits, OpenRequests
from .metrics import Metrics
from .protocol import Model
from .tensors import Array

# A hand-over to a thread costs a call about 0.1 ms; a longer call would keep all other requests waiting.
LONGEST_INLINE_MS = 1.0
NUM_WARMING = 20


class Served:
    """Raises `BadBundle` where the golden samples are not answered as the trained model did, to `tolerance`.

    `tolerance` is that of the manifest unless given; another provider than the CPU's may need a larger one.
    """

    def __init__(
        self,
        bundle: Bundle,
        limits: Limits,
        open_requests: OpenRequests,
        metrics: Metrics,
        tolerance: float | None = None,
    ) -> None:
        manifest, self.bundle = bundle.manifest, bundle
        self.model = Model(
            name=manifest["name"],
            version=str(manifest["version"]),
            input=manifest["inputs"][0],
            outputs=manifest["outputs"],
            max_batch_size=bundle.max_batch_size,
        )
        self.accepted = bundle.accepted
        golden = read_golden(bundle.folder)
        self._example = golden[0][0]
        _check(bundle, golden, manifest["tolerance"] if tolerance is None else tolerance)
        self.latency_ms = _warm(bundle, golden[0][:1])
        thread = ThreadPoolExecutor(1, "inference") if self.latency_ms > LONGEST_INLINE_MS else None
        self._batcher = Batcher(bundle, bundle.max_batch_size, limits, thread, open_requests, metrics)

    def description(self) -> dict[str, Any]:
        """For the page: what it takes, with a real sample where that is a row of a table."""
        columns = [column.to_dict() for column in self.accepted.columns]
        example = [None if np.isnan(value) else value for value in self._example.tolist()] if columns else None
        return {
            "name": self.model.name,
            "task": self.bundle.task.name,
            "labels": self.bundle.labels,
            "columns": columns,
            "example": example,
        }

    async def infer(self, inputs: Array) -> dict[str, Array]:
        """Raw input `(B, ...)` to the outputs by name; raises `Rejected` where there is too much to do."""
        outputs: Arrays = await self._batcher(inputs)
        return dict(zip(self.bundle.outputs, outputs, strict=True))


def _check(bundle: Bundle, golden: tuple[Array, ...], tolerance: float) -> None:
    inputs, *expected = (array[: bundle.max_batch_size] for array in golden)
    for name, found, right in zip(bundle.outputs, bundle(inputs), expected, strict=True):
        worst = difference(found, right)
        if not worst <= tolerance:
            raise BadBundle(
                f"{bundle.folder} answers its golden samples otherwise than the trained model: {name} differ by "
                f"{worst:.2g}, {tolerance:.2g} is allowed (tolerance=)."
            )


def _warm(bundle: Bundle, sample: Array) -> float:
    """The median latency of one sample, in ms."""
    bundle(np.repeat(sample, bundle.max_batch_size, axis=0))
    times = []
    for _ in range(NUM_WARMING):
        start = time.perf_counter()
        bundle(sample)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3
