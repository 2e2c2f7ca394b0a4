"""`drift=true`: shows whether requests resemble the data that the model was trained on."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from ..inference.answers import predicted
from ..inference.signature import Array, Arrays, Signature

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
        signature = Signature.of_manifest(manifest)
        self._input = next((tensor for tensor in signature.inputs if tensor.mean), None)
        self._labelled = next((tensor for tensor in signature.outputs if tensor.labels), None)
        self._target = next((tensor for tensor in signature.outputs if tensor.mean), None)
        self._num_predicted, self._mean_prediction = 0, 0.0
        names: dict[int, str] = {}
        if self._input is not None:
            columns = self._input.columns  # codes of categories have no mean
            names = {place: column.name for place, column in enumerate(columns) if column.categories is None}
            names = names if columns else {place: str(place) for place in range(len(self._input.mean))}
            for place, name in names.items():
                self._training_mean.labels(name).set(self._input.mean[place])
                self._training_std.labels(name).set(self._input.std[place])
        self._channels, self._names = list(names), list(names.values())
        self._mean = self._square = self._num_known = np.zeros(len(names))
        if self._target is not None:
            self._training_target.labels(self._target.name).set(self._target.mean[0])
        if self._labelled is not None and (counts := self._labelled.label_counts):
            for label, count in zip(self._labelled.labels, counts, strict=True):
                self._training_share.labels(label).set(count / sum(counts))

    def observe(self, inputs: Arrays, outputs: Arrays) -> None:
        """Adds raw inputs `(B, C, ...)`, where NaN is a missing value, and the outputs for them."""
        if self._input is not None:
            self._observe_input(inputs[self._input.name])
        if self._target is not None:
            predictions = outputs[self._target.name]
            self._num_predicted += len(predictions)
            share = len(predictions) / min(self._num_predicted, WINDOW)
            self._mean_prediction += share * (float(predictions.mean()) - self._mean_prediction)
            self._prediction_mean.labels(self._target.name).set(self._mean_prediction)
        if self._labelled is not None:
            chosen, labels = predicted(self._labelled, outputs[self._labelled.name]), self._labelled.labels
            if self._labelled.multiple:
                counts = chosen.reshape(len(chosen), len(labels), -1).sum(axis=(0, 2))
            else:
                counts = np.bincount(chosen.ravel(), minlength=len(labels))
            for label, count in zip(labels, counts.tolist(), strict=False):
                if count:
                    self._predictions.labels(label).inc(count)

    def _observe_input(self, inputs: Array) -> None:
        values = inputs.reshape(*inputs.shape[:2], -1)[:, self._channels].astype(np.float64)
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
