"""What each task answers, how good answers are, and how they are told. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Task:
    """One label of several for each sample.

    `outputs` names what a network answers, `(B, K)` float32 each: the first is what was trained, others follow from it.
    `score` is the metric that a reduced format is held to, at most 1 and the higher the better; that of an exact
    one may differ by `rounding`.
    """

    name: str = "classification"
    outputs: tuple[str, ...] = ("logits", "probabilities")
    score_name: str = "accuracy"
    rounding: float = 0.0

    def score(self, first: Array, truth: Array) -> float:
        """Of the first output `(N, K)`, beside `truth` as the data sets have it: `(N,)`, labels by their numbers."""
        return float(np.mean(first.argmax(axis=1) == truth))

    def agreeing(self, first: Array, other: Array) -> int:
        """How many of N samples two models answer alike."""
        return int(np.sum(first.argmax(axis=1) == other.argmax(axis=1)))

    def following(self, first: Array) -> tuple[Array, ...]:
        """The other outputs, from the first one."""
        raised = np.exp(first - first.max(axis=1, keepdims=True))
        return (np.asarray(raised / raised.sum(axis=1, keepdims=True)),)

    def told(self, last: Array, labels: Sequence[str], every: bool) -> dict[str, Any]:
        """Of one sample, from the last output `(K,)`; with `every`, the figures of all labels."""
        best = int(last.argmax())
        found: dict[str, Any] = {"label": labels[best], "probability": figure(last[best])}
        return {**found, **_of_each(last, labels)} if every else found


@dataclass(frozen=True)
class MultiLabel(Task):
    """Each label for itself: a sample may have any number of them; `truth` is `(N, K)`, 0 or 1."""

    name: str = "multilabel"
    score_name: str = "accuracy"

    def score(self, first: Array, truth: Array) -> float:
        """The share of right answers over all samples and labels."""
        return float(np.mean((first > 0) == (truth > 0.5)))

    def agreeing(self, first: Array, other: Array) -> int:
        return int(np.sum(((first > 0) == (other > 0)).all(axis=1)))

    def following(self, first: Array) -> tuple[Array, ...]:
        return (np.asarray((1 + np.tanh(first / 2)) / 2),)

    def told(self, last: Array, labels: Sequence[str], every: bool) -> dict[str, Any]:
        found = {"labels": [label for label, probability in zip(labels, last, strict=True) if probability > 0.5]}
        return {**found, **_of_each(last, labels)} if every else found


@dataclass(frozen=True)
class Regression(Task):
    """A number for each sample, in the units of the target; `truth` is `(N,)`."""

    name: str = "regression"
    outputs: tuple[str, ...] = ("prediction",)
    score_name: str = "r2"
    rounding: float = 1e-5

    def score(self, first: Array, truth: Array) -> float:
        """The share of the target's variance that is explained (the coefficient of determination)."""
        residual, total = np.sum(np.square(truth - first[:, 0])), np.sum(np.square(truth - truth.mean()))
        return float(1 - residual / total) if total else 0.0

    def agreeing(self, first: Array, other: Array) -> int:
        """To half a hundredth of the value, or of the spread where that is larger."""
        spread = max(float(np.std(other)), 1e-12)
        return int(np.sum(np.abs(first - other) <= 5e-3 * np.maximum(np.abs(other), spread)))

    def following(self, first: Array) -> tuple[Array, ...]:
        return ()

    def told(self, last: Array, labels: Sequence[str], every: bool) -> dict[str, Any]:
        return {"prediction": figure(last[0])}


TASKS: dict[str, Task] = {task.name: task for task in (Task(), MultiLabel(), Regression())}


def _of_each(last: Array, labels: Sequence[str]) -> dict[str, Any]:
    return {"probabilities": dict(zip(labels, map(figure, last), strict=True))}


def figure(value: Any) -> float:
    """As many digits as float32 has."""
    return float(f"{value:.7g}")
