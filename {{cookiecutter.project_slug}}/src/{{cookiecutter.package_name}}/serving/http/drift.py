"""`drift=true`: whether what is asked looks like what the model was trained on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from .tensors import Array

WINDOW = 10_000  # samples; older ones fade


class Drift:
    """Mean and deviation of each channel of the input, and how often each label was predicted.

    Beside them stands the same of the training split; of the labels only where the manifest tells their counts.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, label: str = "channel") -> Gauge:
            return Gauge(f"serving_{name}", text, [label], registry=registry)

        self._means = gauge("input_mean", f"Mean of the raw input, over about the last {WINDOW:,} samples")
        self._deviations = gauge("input_std", "Standard deviation of the same")
        self._training_means = gauge("training_input_mean", "Mean of the raw input in the training split")
        self._training_deviations = gauge("training_input_std", "Standard deviation of the same")
        self._training_shares = gauge("training_label_share", "Of a label in the training split, 0 to 1", "label")
        self._predictions = Counter("serving_predictions", "Predicted labels", ["label"], registry=registry)

    def compare_with(self, manifest: Mapping[str, Any]) -> None:
        """Starts anew, beside another training split."""
        self._labels: Sequence[str] = manifest["labels"]
        training, counts = manifest["preprocessing"], manifest["data"]["label_counts"]
        self._num_samples = 0
        self._mean = self._square = np.zeros(len(training["mean"]))
        for gauge in (self._means, self._deviations, self._training_means, self._training_deviations):
            gauge.clear()
        self._training_shares.clear()
        for channel, (mean, deviation) in enumerate(zip(training["mean"], training["std"], strict=True)):
            self._training_means.labels(channel).set(mean)
            self._training_deviations.labels(channel).set(deviation)
        for label, count in zip(self._labels, counts, strict=True) if counts else ():
            self._training_shares.labels(label).set(count / sum(counts))

    def observe(self, inputs: Array, probabilities: Array) -> None:
        """Raw input `(B, C, ...)` and the answer `(B, K)`."""
        values = inputs.reshape(len(inputs), len(self._mean), -1).astype(np.float64)
        self._num_samples += len(inputs)
        weight = len(inputs) / min(self._num_samples, WINDOW)
        self._mean = self._mean + weight * (values.mean(axis=(0, 2)) - self._mean)
        self._square = self._square + weight * (np.square(values).mean(axis=(0, 2)) - self._square)
        for channel, (mean, square) in enumerate(zip(self._mean.tolist(), self._square.tolist(), strict=True)):
            self._means.labels(channel).set(mean)
            self._deviations.labels(channel).set(math.sqrt(max(0.0, square - mean * mean)))
        for index, count in enumerate(np.bincount(probabilities.argmax(axis=1)).tolist()):
            if count:
                self._predictions.labels(self._labels[index]).inc(count)
