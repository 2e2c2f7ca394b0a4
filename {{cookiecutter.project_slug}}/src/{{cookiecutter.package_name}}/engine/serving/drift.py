"""`drift=true`: shows whether requests resemble the data that the model was trained on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from .payload import Array

WINDOW = 10_000  # samples; older ones fade


class Drift:
    """Mean and deviation of each channel of the input, or column of numbers, and the counts of predicted labels.

    The same figures of the training split stand beside them; those of labels only if the manifest has their counts.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges: list[Gauge] = []

        def gauge(name: str, text: str, label: str = "channel") -> Gauge:
            self._gauges.append(Gauge(f"serving_{name}", text, [label], registry=registry))
            return self._gauges[-1]

        self._input_mean = gauge("input_mean", f"Mean of the raw input, over about the last {WINDOW:,} samples")
        self._input_std = gauge("input_std", "Standard deviation of the same")
        self._training_mean = gauge("training_input_mean", "Mean of the raw input in the training split")
        self._training_std = gauge("training_input_std", "Standard deviation of the same")
        self._training_share = gauge("training_label_share", "Of a label in the training split, 0 to 1", "label")
        self._predictions = Counter("serving_predictions", "Predicted labels", ["label"], registry=registry)
        text = "Mean of the predictions of a regression, over as many"
        self._prediction_mean = gauge("prediction_mean", text, "target")
        self._training_target = gauge("training_target_mean", "Mean of the target in the training split", "target")

    def set_reference(self, manifest: Mapping[str, Any]) -> None:
        """Starts over, beside the training split of another version."""
        for gauge in self._gauges:
            gauge.clear()
        self._labels: Sequence[str] = manifest["labels"]
        self._task, self._target = manifest["task"], manifest.get("target")
        training, counts = manifest["preprocessing"], manifest["data"]["label_counts"]
        self._num_channels = len(training["mean"])
        (tensor,) = manifest["inputs"]
        if "columns" in tensor:  # codes of categories have no mean
            columns = enumerate(tensor["columns"])
            names = {index: column["name"] for index, column in columns if column["categories"] is None}
        else:
            names = {index: str(index) for index in range(self._num_channels)}
        self._channels, self._names = list(names), list(names.values())
        self._mean = self._square = self._num_known = np.zeros(len(names))
        self._num_predicted, self._mean_prediction = 0, 0.0
        for index, name in names.items():
            self._training_mean.labels(name).set(training["mean"][index])
            self._training_std.labels(name).set(training["std"][index])
        if self._target is not None:
            self._training_target.labels(self._target["name"]).set(self._target["mean"])
        for label, count in zip(self._labels, counts, strict=True) if counts else ():
            self._training_share.labels(label).set(count / sum(counts))

    def observe(self, inputs: Array, predictions: Array) -> None:
        """Adds raw input `(B, C, ...)`, where NaN is a missing value, and the task's last output `(B, K)`."""
        values = inputs.reshape(len(inputs), self._num_channels, -1)[:, self._channels].astype(np.float64)
        known = ~np.isnan(values)
        values[~known] = 0
        num_values = np.maximum(known.sum(axis=(0, 2)), 1)
        num_known = known.mean(axis=2).sum(axis=0)
        self._num_known = self._num_known + num_known
        weight = num_known / np.clip(self._num_known, 1, WINDOW)
        self._mean = self._mean + weight * (values.sum(axis=(0, 2)) / num_values - self._mean)
        self._square = self._square + weight * (np.square(values).sum(axis=(0, 2)) / num_values - self._square)
        for name, mean, square in zip(self._names, self._mean.tolist(), self._square.tolist(), strict=True):
            self._input_mean.labels(name).set(mean)
            self._input_std.labels(name).set(math.sqrt(max(0.0, square - mean * mean)))
        if self._target is not None:
            self._num_predicted += len(predictions)
            share = len(predictions) / min(self._num_predicted, WINDOW)
            self._mean_prediction += share * (float(predictions.mean()) - self._mean_prediction)
            self._prediction_mean.labels(self._target["name"]).set(self._mean_prediction)
            return
        is_multilabel = self._task == "multilabel"
        chosen = predictions > 0.5 if is_multilabel else np.eye(len(self._labels))[predictions.argmax(axis=1)]
        for label, count in zip(self._labels, chosen.sum(axis=0).tolist(), strict=True):
            if count:
                self._predictions.labels(label).inc(count)
