"""The outputs of each task, their score, and the descriptions of predictions."""

import numpy as np
import pytest

from {{ cookiecutter.package_name }}.engine.inference.tasks import TASKS

LABELS = ["a", "b", "c"]


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, r2_score

    numbers = np.random.default_rng(1)
    logits = numbers.normal(size=(50, 3)).astype(np.float32)
    one, several = numbers.integers(3, size=50), numbers.integers(2, size=(50, 3))
    assert TASKS["classification"].score(logits, one) == pytest.approx(accuracy_score(one, logits.argmax(1)))
    right = accuracy_score(several.ravel(), (logits > 0).ravel())
    assert TASKS["multilabel"].score(logits, several) == pytest.approx(right)
    truth = numbers.normal(2000, 5, size=50)
    predicted = (truth + numbers.normal(size=50))[:, np.newaxis]
    assert TASKS["regression"].score(predicted, truth) == pytest.approx(r2_score(truth, predicted[:, 0]))
    assert TASKS["regression"].score(np.ones((3, 1)), np.ones(3)) == 0


def test_second_output_follows_from_the_first() -> None:
    logits = np.array([[0.0, np.log(3), -1000.0]])
    (softmax,) = TASKS["classification"].following(logits)
    np.testing.assert_allclose(softmax, [[0.25, 0.75, 0]])
    (sigmoid,) = TASKS["multilabel"].following(logits)
    np.testing.assert_allclose(sigmoid, [[0.5, 0.75, 0]])
    assert TASKS["regression"].following(logits) == ()


def test_predictions_are_described_by_their_labels() -> None:
    last = np.array([0.2, 0.7, 0.6], np.float32)
    one, several, number = (TASKS[name] for name in ("classification", "multilabel", "regression"))
    assert one.describe(last, LABELS, every=False) == {"label": "b", "probability": 0.7}
    assert several.describe(last, LABELS, every=False) == {"labels": ["b", "c"]}
    assert several.describe(last, LABELS, every=True)["probabilities"] == {"a": 0.2, "b": 0.7, "c": 0.6}
    assert number.describe(np.array([12.5]), [], every=True) == {"prediction": 12.5}


def test_answers_agree_if_a_user_could_not_tell_them_apart() -> None:
    first, other = np.array([[100.0], [200.0], [-3.0]]), np.array([[100.2], [200.0], [-9.0]])
    assert TASKS["regression"].agreeing(first, other) == 2
    assert TASKS["multilabel"].agreeing(np.array([[1.0, -1], [1, 1]]), np.array([[2.0, -1], [1, -1]])) == 1
