"""Cross entropy with class weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from digits import Digits
from sklearn.utils.class_weight import compute_class_weight
from test_models import make_classifier, make_spec, make_trainer

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training.losses import CrossEntropy, label_scales

COUNTS = (700, 200, 100)
LABELS = torch.tensor([0, 0, 0, 0, 2, 1, 2, 2])


def uneven(counts: tuple[int, ...] = COUNTS) -> DataSpec:
    return DataSpec.from_dict({**make_spec().to_dict(), "label_counts": list(counts)})


def logits() -> torch.Tensor:
    numbers = torch.Generator().manual_seed(1)
    return torch.randn(len(LABELS), 3, dtype=torch.float64, generator=numbers).requires_grad_()


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.repeat(range(3), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert label_scales(uneven(), "balanced") == pytest.approx(expected.tolist())


def test_given_weights_are_relative_and_leave_the_loss_on_its_scale() -> None:
    scales = label_scales(uneven(), [1.0, 2.0, 5.0])
    assert scales == pytest.approx(label_scales(uneven(), [10.0, 20.0, 50.0]))
    assert np.dot(scales, COUNTS) / sum(COUNTS) == pytest.approx(1)
    assert scales[2] / scales[0] == pytest.approx(5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_does_not_depend_on_how_a_batch_is_split(smoothing: float) -> None:
    loss = CrossEntropy(uneven(), "balanced", smoothing).double()
    complete, parts = logits(), logits()
    loss(complete, LABELS).backward()
    for part in (slice(0, 4), slice(4, 8)):  # the first one holds a single label
        (loss(parts[part], LABELS[part]) / 2).backward()
    torch.testing.assert_close(parts.grad, complete.grad, rtol=0, atol=1e-12)


def test_integer_weight_counts_as_repetition_of_the_sample() -> None:
    """With label smoothing too, and up to the constant mean weight."""
    weights = [1.0, 2.0, 3.0]
    repeated = LABELS.repeat_interleave(torch.tensor([int(weights[label]) for label in LABELS]))
    rows = torch.arange(len(LABELS)).repeat_interleave(torch.tensor([int(weights[label]) for label in LABELS]))
    total = F.cross_entropy(logits()[rows], repeated, label_smoothing=0.1, reduction="sum")
    mean_weight = np.dot(weights, COUNTS) / sum(COUNTS)
    found = CrossEntropy(uneven(), weights, 0.1).double()(logits(), LABELS)
    assert found.item() == pytest.approx(total.item() / (len(LABELS) * mean_weight), rel=1e-6)


def test_loss_without_weights_equals_torchs_to_the_bit() -> None:
    assert torch.equal(CrossEntropy(uneven())(logits(), LABELS), F.cross_entropy(logits(), LABELS))
    assert not list(CrossEntropy(uneven()).buffers())


def test_labels_are_smoothed_in_training_mode_alone() -> None:
    several = DataSpec.from_dict({**make_spec().to_dict(), "task": "multilabel"})
    labels = torch.randint(2, (len(LABELS), 3), generator=torch.Generator().manual_seed(2))
    smooth = labels * 0.9 + 0.05
    for spec, y, right, smoothed in (
        (
            make_spec(),
            LABELS,
            F.cross_entropy(logits(), LABELS),
            F.cross_entropy(logits(), LABELS, label_smoothing=0.1),
        ),
        (
            several,
            labels,
            F.binary_cross_entropy_with_logits(logits(), labels.double()),
            F.binary_cross_entropy_with_logits(logits(), smooth.double()),
        ),
    ):
        loss = CrossEntropy(spec, label_smoothing=0.1)
        torch.testing.assert_close(loss.train()(logits(), y), smoothed, rtol=0, atol=1e-7)
        torch.testing.assert_close(loss.eval()(logits(), y), right, rtol=0, atol=1e-7)
        assert smoothed.item() != pytest.approx(right.item(), rel=1e-3)


def test_test_loss_is_weighted_and_accuracy_is_not() -> None:
    datamodule = Digits(batch_size=50)
    weights = [float(number) for number in range(1, 11)]
    model = make_classifier(datamodule.spec, class_weights=weights, label_smoothing=0.1)
    (figures,) = make_trainer().test(model, datamodule=datamodule, verbose=False)
    samples, scales = datamodule.samples["test"], torch.tensor(label_scales(datamodule.spec, weights))
    with torch.inference_mode():
        logits = model(samples.inputs)
        losses = F.cross_entropy(logits, samples.labels, reduction="none") * scales[samples.labels]
    assert figures["test/loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    assert figures["test/acc"] == pytest.approx((logits.argmax(1) == samples.labels).float().mean().item())
    assert not any("loss" in name for name in model.state_dict()), "class weights are no part of a checkpoint"


def test_unusable_weights_are_refused() -> None:
    cases = (
        (make_spec(), "balanced", "set label_counts in the DataSpec"),
        (uneven((1, 0, 2)), "balanced", "no training sample shows 'label 1'"),
        (uneven(), [1.0, 2.0], "has 2 numbers for 3 labels: give one each, in the order label 0, label 1, label 2"),
        (uneven(), [1.0, -2.0, 1.0], "-2.0 is out of range"),
        (uneven(), [1.0, float("nan"), 1.0], "nan is out of range"),
    )
    for spec, weights, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            CrossEntropy(spec, weights)
