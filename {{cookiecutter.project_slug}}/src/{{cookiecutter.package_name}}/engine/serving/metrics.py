"""What a server tells Prometheus."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from .drift import Drift

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Observed:
    """One histogram; the library's own takes a lock for each figure."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.sum = bounds, 0.0
        self.counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each counts what is no more than its bound."""
        names = [*map(str, map(float, self.bounds)), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


class Histograms(Collector):
    """All histograms, by name, text and labels."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str, tuple[str, ...]], dict[tuple[str, ...], Observed]] = {}

    def add(self, name: str, text: str, bounds: Sequence[float], **labels: str) -> Observed:
        found = self._of.setdefault((name, text, tuple(labels)), {})
        return found.setdefault(tuple(labels.values()), Observed(bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        for (name, text, labels), observed in self._of.items():
            family = HistogramMetricFamily(name, text, labels=labels)
            for values, histogram in observed.items():
                family.add_metric(values, histogram.buckets(), histogram.sum)
            yield family


class Metrics:
    """Counts and durations are sums since the start, so that Prometheus can take rates over any window."""

    def __init__(self, with_drift: bool) -> None:
        self.registry = CollectorRegistry()
        self.drift = Drift(self.registry) if with_drift else None
        self._histograms = Histograms()
        self._requests: dict[tuple[str, int], Observed] = {}
        where = "Where the time goes: read (the body to an array), queue, compute (a batch), write"
        self.read, self.queued, self.computed, self.written = (
            self._histograms.add("serving_stage_seconds", where, SECONDS, stage=stage)
            for stage in ("read", "queue", "compute", "write")
        )
        self.batch_size = self._histograms.add("serving_batch_size", "Samples computed at once", SIZES)
        self.registry.register(self._histograms)
        self.num_waiting = 0
        waiting = Gauge("serving_queue_length", "Requests that wait to be computed", registry=self.registry)
        waiting.set_function(lambda: self.num_waiting)
        self.rejected = Counter(
            "serving_rejected", "Requests that were not answered, by reason", ["reason"], registry=self.registry
        )
        self.failed_reloads = Counter(
            "serving_failed_reloads", "Versions that failed their checks", registry=self.registry
        )
        self._model = Gauge(
            "serving_model_info", "The model that is served", ["name", "version", "sha256"], registry=self.registry
        )

    def observe_request(self, route: str, code: int, seconds: float) -> None:
        found = self._requests.get((route, code))
        if found is None:
            text = "Requests and their duration, by route and status"
            found = self._histograms.add("serving_request_seconds", text, SECONDS, route=route, code=str(code))
            self._requests[route, code] = found
        found.observe(seconds)

    def tell_model(self, manifest: Mapping[str, Any], file: str = "model.onnx") -> None:
        self._model.clear()
        self._model.labels(manifest["name"], manifest["version"], manifest["files"][file]["sha256"]).set(1)
        if self.drift is not None:
            self.drift.compare_with(manifest)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self.registry)
