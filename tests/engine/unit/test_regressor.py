"""Regression: predictions and metrics are in the units of the target."""

from functools import partial

import pytest
import torch
from digits import Digits, linear
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from test_models import make_trainer
from torch import nn

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.export.network import Call, deployed, eager
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.models.regressor import Regressor


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
    exported = eager(deployed(model, Call(("x",))))
    predicted = exported({"x": test.inputs.numpy()})["prediction"]
    truth = test.labels.numpy()
    assert predicted.shape == (360, 1)
    assert 2000 < predicted.mean() < 2009
    assert figures["test/rmse"] == pytest.approx(root_mean_squared_error(truth, predicted), rel=1e-3)
    assert figures["test/mae"] == pytest.approx(mean_absolute_error(truth, predicted), rel=1e-3)
    assert figures["test/r2"] == pytest.approx(r2_score(truth, predicted), abs=1e-3)
    val = datamodule.samples["val"]
    (of_validation,) = trainer.validate(model, datamodule=datamodule, verbose=False)
    predicted = exported({"x": val.inputs.numpy()})["prediction"]
    assert of_validation["val/mae"] == pytest.approx(mean_absolute_error(val.labels.numpy(), predicted), rel=1e-3)


def test_loss_is_computed_from_the_standardized_target() -> None:
    spec = Years().spec
    model = make_regressor(spec)
    model.net = nn.Identity()  # in the place of a network: it answers with its input
    y = torch.tensor([spec.target_mean, spec.target_mean + spec.target_std], dtype=torch.float64)
    for outputs, loss in (([[0.0], [1.0]], 0.0), ([[1.0], [1.0]], 0.5)):
        found, predicted, truth = model.step((torch.tensor(outputs, dtype=torch.float64), y))
        assert found.item() == pytest.approx(loss, abs=1e-6)
        assert (predicted - truth).square().mean().item() == pytest.approx(loss * spec.target_std**2, abs=1e-6)


def test_labels_are_refused() -> None:
    with pytest.raises(UserError, match="the data has labels to predict, and no numbers: take the model of task="):
        make_regressor(Digits().spec)
