"""Regression: predictions and metrics are in the units of the target."""

from functools import partial

import pytest
import torch
from digits import Digits, linear
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from test_models import make_trainer

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.export.network import deployed, eager
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.models.regressor import NUM_BINS, Regressor


class Years(Digits):
    """The target is the digit plus 2000, far from zero with a small spread."""

    def __init__(self) -> None:
        super().__init__(batch_size=50)
        for part in self.samples.values():
            part.labels = 2000 + part.labels.float()
        truth = self.samples["train"].labels.double()
        fields = self.spec.to_dict() | {"task": "regression", "labels": [], "label_counts": [], "target": "year"}
        fields |= {"target_mean": truth.mean().item(), "target_std": truth.std(correction=0).item()}
        self.spec = DataSpec.from_dict(fields)


def make_regressor(spec: DataSpec, **options: object) -> Regressor:
    torch.manual_seed(1)
    net, optimizer = partial(linear, width=32), partial(torch.optim.AdamW, lr=0.01, fused=True)
    return Regressor(spec, net, optimizer, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_metrics_are_those_of_scikit_learn_in_the_units_of_the_target(loss: str) -> None:
    datamodule = Years()
    model, trainer = make_regressor(datamodule.spec, loss=loss), make_trainer(max_epochs=3)
    trainer.fit(model, datamodule=datamodule)
    assert trainer.callback_metrics["train/rmse"] < 2.5
    (figures,) = trainer.test(model, datamodule=datamodule, verbose=False)
    test = datamodule.samples["test"]
    (predicted,) = eager(deployed(model))(test.inputs.numpy())
    truth = test.labels.numpy()
    assert predicted.shape == (360, 1)
    assert 2000 < predicted.mean() < 2009
    assert figures["test/rmse"] == pytest.approx(root_mean_squared_error(truth, predicted), rel=1e-3)
    assert figures["test/mae"] == pytest.approx(mean_absolute_error(truth, predicted), rel=1e-3)
    assert figures["test/r2"] == pytest.approx(r2_score(truth, predicted), abs=1e-3)
    with torch.inference_mode():  # without resetting the metrics of the test
        exported = model.test_figures(torch.from_numpy(predicted), test.labels)
    assert exported["test/rmse"] == pytest.approx(figures["test/rmse"], rel=1e-3)
    assert model.counts is not None
    assert (model.counts.shape, int(model.counts.sum())) == ((NUM_BINS, NUM_BINS), 360)


def test_loss_is_computed_from_the_standardized_target() -> None:
    spec = Years().spec
    model = make_regressor(spec)
    y = torch.tensor([spec.target_mean, spec.target_mean + spec.target_std])
    assert model.batch_loss(torch.tensor([[0.0], [1.0]]), y, training=True).item() == pytest.approx(0, abs=1e-6)
    assert model.batch_loss(torch.tensor([[1.0], [1.0]]), y, training=True).item() == pytest.approx(0.5, abs=1e-3)


def test_units_are_not_in_the_state_dict() -> None:
    model = make_regressor(Years().spec)
    assert not [name for name in deployed(model).state_dict() if name.startswith("answers")]


def test_labels_are_refused() -> None:
    with pytest.raises(UserError, match="the data has labels to predict, and no numbers: take the model of task="):
        make_regressor(Digits().spec)
