"""The tasks: the outputs of a network, their score, and how a prediction is described."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Task:
    """Classification: one label of several for each sample.

    `outputs` names the outputs of a network, `(B, K)` float32 each: the first is trained, others are computed from it.
    `score` is the metric by which formats are compared, at most 1 and the higher the better; that of an exact format
    may differ by `rounding`.
    """

    name: str = "classification"
    outputs: tuple[str, ...] = ("logits", "probabilities")
    score_name: str = "accuracy"
    rounding: float = 0.0

    def score(self, first: Array, truth: Array) -> float:
        """Scores the first output `(N, K)` against `truth` as the data sets have it: `(N,)`, the numbers of labels."""
        return float(np.mean(first.argmax(axis=1) == truth))

    def agreeing(self, first: Array, other: Array) -> int:
        """Counts the samples, of N, that two models answer alike."""
        return int(np.sum(first.argmax(axis=1) == other.argmax(axis=1)))

    def following(self, first: Array) -> tuple[Array, ...]:
        """Computes the other outputs from the first one."""
        raised = np.exp(first - first.max(axis=1, keepdims=True))
        return (np.asarray(raised / raised.sum(axis=1, keepdims=True)),)

    def describe(self, last: Array, labels: Sequence[str], every: bool) -> dict[str, Any]:
        """Describes the prediction for one sample by its last output `(K,)`; with `every`, of all labels."""
        best = int(last.argmax())
        prediction: dict[str, Any] = {"label": labels[best], "probability": figure(last[best])}
        return {**prediction, **_probabilities(last, labels)} if every else prediction


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels for each sample; `truth` is `(N, K)`, 0 or 1."""

    name: str = "multilabel"
    score_name: str = "accuracy"

    def score(self, first: Array, truth: Array) -> float:
        """Returns the share of right answers over all samples and labels."""
        return float(np.mean((first > 0) == (truth > 0.5)))

    def agreeing(self, first: Array, other: Array) -> int:
        return int(np.sum(((first > 0) == (other > 0)).all(axis=1)))

    def following(self, first: Array) -> tuple[Array, ...]:
        return (np.asarray((1 + np.tanh(first / 2)) / 2),)

    def describe(self, last: Array, labels: Sequence[str], every: bool) -> dict[str, Any]:
        prediction = {"labels": [label for label, probability in zip(labels, last, strict=True) if probability > 0.5]}
        return {**prediction, **_probabilities(last, labels)} if every else prediction


@dataclass(frozen=True)
class Regression(Task):
    """One number for each sample, in the units of the target; `truth` is `(N,)`."""

    name: str = "regression"
    outputs: tuple[str, ...] = ("prediction",)
    score_name: str = "r2"
    rounding: float = 1e-5

    def score(self, first: Array, truth: Array) -> float:
        """Returns the coefficient of determination: the share of the target's variance that is explained."""
        residual, total = np.sum(np.square(truth - first[:, 0])), np.sum(np.square(truth - truth.mean()))
        return float(1 - residual / total) if total else 0.0

    def agreeing(self, first: Array, other: Array) -> int:
        """Counts values as alike to half a hundredth of the value, or of the deviation where that is larger."""
        spread = max(float(np.std(other)), 1e-12)
        return int(np.sum(np.abs(first - other) <= 5e-3 * np.maximum(np.abs(other), spread)))

    def following(self, first: Array) -> tuple[Array, ...]:
        return ()

    def describe(self, last: Array, labels: Sequence[str], every: bool) -> dict[str, Any]:
        return {"prediction": figure(last[0])}


TASKS: dict[str, Task] = {task.name: task for task in (Task(), MultiLabel(), Regression())}


def _probabilities(last: Array, labels: Sequence[str]) -> dict[str, Any]:
    return {"probabilities": dict(zip(labels, map(figure, last), strict=True))}


def figure(value: Any) -> float:
    """Rounds to as many digits as float32 has."""
    return float(f"{value:.7g}")
