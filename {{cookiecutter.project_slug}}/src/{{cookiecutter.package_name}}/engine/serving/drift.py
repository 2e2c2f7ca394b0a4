"""`drift=true`: whether what is asked looks like what the model was trained on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from .tensors import Array

WINDOW = 10_000  # samples; older ones fade


class Drift:
    """Mean and deviation of each channel of the input, or column of numbers, and how often each label was predicted.

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
        self._prediction = gauge("prediction_mean", "Mean of the predictions of a regression, over as many", "target")
        self._training_target = gauge("training_target_mean", "Mean of the target in the training split", "target")

    def compare_with(self, manifest: Mapping[str, Any]) -> None:
        """Starts anew, beside another training split."""
        self._labels: Sequence[str] = manifest["labels"]
        self._task, self._target = manifest["task"], manifest.get("target")
        self._num_predicted, self._predicted = 0, 0.0
        training, counts = manifest["preprocessing"], manifest["data"]["label_counts"]
        (tensor,) = manifest["inputs"]
        columns = enumerate(tensor.get("columns", ()))
        # Of a table, its numbers by the names of their columns; codes of categories have no mean.
        names = {place: column["name"] for place, column in columns if column["categories"] is None}
        if "columns" not in tensor:
            names = {place: str(place) for place in range(len(training["mean"]))}
        self._places, self._names, self._num_channels = list(names), list(names.values()), len(training["mean"])
        self._mean = self._square = self._num_known = np.zeros(len(names))
        own = (self._means, self._deviations, self._prediction)
        for gauge in (*own, self._training_means, self._training_deviations, self._training_target):
            gauge.clear()
        self._training_shares.clear()
        for place, name in names.items():
            self._training_means.labels(name).set(training["mean"][place])
            self._training_deviations.labels(name).set(training["std"][place])
        if self._target is not None:
            self._training_target.labels(self._target["name"]).set(self._target["mean"])
        for label, count in zip(self._labels, counts, strict=True) if counts else ():
            self._training_shares.labels(label).set(count / sum(counts))

    def observe(self, inputs: Array, answers: Array) -> None:
        """Raw input `(B, C, ...)`, of which a NaN is a gap, and the task's last output `(B, K)`."""
        values = inputs.reshape(len(inputs), self._num_channels, -1)[:, self._places].astype(np.float64)
        known = ~np.isnan(values)
        values[~known] = 0
        num_values = np.maximum(known.sum(axis=(0, 2)), 1)
        num_known = known.mean(axis=2).sum(axis=0)
        self._num_known = self._num_known + num_known
        weight = num_known / np.clip(self._num_known, 1, WINDOW)
        self._mean = self._mean + weight * (values.sum(axis=(0, 2)) / num_values - self._mean)
        self._square = self._square + weight * (np.square(values).sum(axis=(0, 2)) / num_values - self._square)
        for name, mean, square in zip(self._names, self._mean.tolist(), self._square.tolist(), strict=True):
            self._means.labels(name).set(mean)
            self._deviations.labels(name).set(math.sqrt(max(0.0, square - mean * mean)))
        if self._target is not None:
            self._num_predicted += len(answers)
            weight_of_these = len(answers) / min(self._num_predicted, WINDOW)
            self._predicted += weight_of_these * (float(answers.mean()) - self._predicted)
            self._prediction.labels(self._target["name"]).set(self._predicted)
            return
        chosen = answers > 0.5 if self._task == "multilabel" else np.eye(len(self._labels))[answers.argmax(axis=1)]
        for label, count in zip(self._labels, chosen.sum(axis=0).tolist(), strict=True):
            if count:
                self._predictions.labels(label).inc(count)
