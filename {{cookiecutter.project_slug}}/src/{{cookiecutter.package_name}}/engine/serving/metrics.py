"""The server's metrics for Prometheus."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.samples import Sample

from .drift import Drift

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counts and durations are sums since the start, so that Prometheus can take rates over any window."""

    def __init__(self, with_drift: bool) -> None:
        self.registry = registry = CollectorRegistry()
        self.drift = Drift(registry) if with_drift else None
        text = "Requests and their duration, by route and status"
        seconds = Histogram("serving_request_seconds", text, ["route", "code"], buckets=SECONDS, registry=registry)
        self.request_seconds = cache(seconds.labels)  # to look labels up takes as long as to observe a value
        text = "Where the time goes: read (the body to an array), queue, compute (a batch), write"
        stages = Histogram("serving_stage_seconds", text, ["stage"], buckets=SECONDS, registry=registry)
        self.read, self.queued = stages.labels("read"), stages.labels("queue")
        self.computed, self.written = stages.labels("compute"), stages.labels("write")
        text = "Samples computed at once"
        self.batch_size = Histogram("serving_batch_size", text, buckets=SIZES, registry=registry)
        self.queue_length = 0
        queue_length = Gauge("serving_queue_length", "Requests that wait to be computed", registry=registry)
        queue_length.set_function(lambda: self.queue_length)
        text = "Requests that were not answered, by reason"
        self.rejected = Counter("serving_rejected", text, ["reason"], registry=registry)
        text = "Values that training did not see, and that counted as missing, by column"
        self.never_seen = Counter("serving_never_seen", text, ["column"], registry=registry)
        text = "Versions that failed their checks"
        self.failed_reloads = Counter("serving_failed_reloads", text, registry=registry)
        labels = ["name", "version", "sha256"]
        self._model = Gauge("serving_model_info", "The model that is served", labels, registry=registry)

    def set_model(self, manifest: Mapping[str, Any], file: str = "model.onnx") -> None:
        self._model.clear()
        self._model.labels(manifest["name"], manifest["version"], manifest["files"][file]["sha256"]).set(1)
        if self.drift is not None:
            self.drift.set_reference(manifest)

    def statistics(self) -> dict[str, Any]:
        """Returns counts and nanoseconds since the start, as Triton's extension of statistics names them."""

        def value(name: str, **labels: str) -> float:
            return self.registry.get_sample_value(f"serving_{name}", labels) or 0.0

        def duration(name: str, **labels: str) -> dict[str, int]:
            return {"count": int(value(f"{name}_count", **labels)), "ns": int(1e9 * value(f"{name}_sum", **labels))}

        stages = {"queue": "queue", "compute_input": "read", "compute_infer": "compute", "compute_output": "write"}
        rejected = sum(sample.value for sample in self._samples() if sample.name == "serving_rejected_total")
        return {
            "inference_count": int(value("batch_size_sum")),
            "execution_count": int(value("batch_size_count")),
            "inference_stats": {
                "success": duration("request_seconds", route="infer", code="200"),
                "fail": {"count": int(rejected), "ns": 0},
                **{name: duration("stage_seconds", stage=stage) for name, stage in stages.items()},
            },
        }

    def _samples(self) -> Iterator[Sample]:
        return (sample for family in self.registry.collect() for sample in family.samples)

    def text(self) -> bytes:
        """Returns all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
