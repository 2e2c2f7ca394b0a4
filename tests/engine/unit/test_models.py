"""The LightningModule: its metrics, their precision, and dp."""

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from digits import Digits, linear, one_device
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from {{ cookiecutter.package_name }}.engine.distributed.strategies import DataParallelStrategy
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training.layers import Normalize
from {{ cookiecutter.package_name }}.models.classifier import Classifier


def make_spec(shape: tuple[int, ...] = (1, 8, 8), num_labels: int = 3) -> DataSpec:
    channels = shape[0]
    return DataSpec(
        name="made",
        task="classification",
        input_shape=shape,
        input_dtype="uint8",
        input_range=(0.0, 255.0),
        labels=tuple(f"label {number}" for number in range(num_labels)),
        mean=tuple(100.0 + channel for channel in range(channels)),
        std=tuple(50.0 + channel for channel in range(channels)),
    )


def make_classifier(spec: DataSpec, **options: Any) -> Classifier:
    return Classifier(
        spec,
        net=linear,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        **options,
    )


def make_trainer(**options: object) -> pl.Trainer:
    options = {
        "accelerator": "cpu",
        "devices": 1,
        "strategy": one_device(),
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        **options,
    }
    return pl.Trainer(**options)  # type: ignore[arg-type]


def test_normalize_takes_raw_pixels_channel_by_channel() -> None:
    batch = torch.tensor([100, 101, 102], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(Normalize(make_spec((3, 4, 4)))(batch), torch.zeros(2, 3, 4, 4))


def test_test_metrics_are_those_of_the_samples() -> None:
    datamodule = Digits(batch_size=50)
    model = make_classifier(datamodule.spec)
    (figures,) = make_trainer().test(model, datamodule=datamodule, verbose=False)
    samples = datamodule.samples["test"]
    with torch.inference_mode():
        logits = model(samples.inputs)
    assert figures["test/acc"] == pytest.approx((logits.argmax(1) == samples.labels).float().mean().item())
    assert figures["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, samples.labels).item(), rel=1e-6)
    counts = model.confusion_matrix.compute()
    expected = torch.zeros(10, 10, dtype=torch.long)
    expected.index_put_((samples.labels, logits.argmax(1)), torch.ones((), dtype=torch.long), accumulate=True)
    assert torch.equal(counts, expected)


def test_figures_of_an_epoch_are_exact_in_half_precision() -> None:
    """bfloat16 cannot represent 997 or 999."""

    class Read(nn.Module):
        """Pictures `(B, 1, 8, 8)` to logits `(B, 3)`: their first pixels."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3].bfloat16() * 100

    inputs = torch.zeros(999, 1, 8, 8, dtype=torch.uint8)
    inputs[:, 0, 0, 0] = 1
    inputs[:2, 0, 0, :2] = torch.tensor([0, 1], dtype=torch.uint8)
    model = make_classifier(make_spec())
    model.net = Read()
    loader = DataLoader(TensorDataset(inputs, torch.zeros(999, dtype=torch.long)), batch_size=10)
    (figures,) = make_trainer(precision="bf16-true").test(model, loader, verbose=False)
    assert model.confusion_matrix.compute()[0].tolist() == [997, 2, 0]
    assert figures["test/acc"] == pytest.approx(997 / 999, abs=1e-6)
    assert figures["test/loss"] == pytest.approx(2 * 100 / 999, rel=1e-6), "two samples lose 100 each"


def test_many_cores_and_an_unused_gpu_cause_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates 16 cores and a GPU; every warning is an error here."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    datamodule = Digits()
    make_trainer(max_epochs=1).fit(make_classifier(datamodule.spec), datamodule=datamodule)
    monkeypatch.setattr("lightning.pytorch.accelerators.CUDAAccelerator.is_available", staticmethod(lambda: True))
    make_trainer(max_epochs=1)


@pytest.mark.gpu
def test_dp_on_a_gpu_gives_the_gradients_of_one_device() -> None:
    """Two replicas on one GPU run scatter, replicate and gather."""
    weights = []
    for strategy in ("auto", DataParallelStrategy([torch.device("cuda", 0), torch.device("cuda", 0)])):
        pl.seed_everything(3, verbose=False)
        datamodule = Digits(batch_size=400)
        model = make_classifier(datamodule.spec)
        trainer = pl.Trainer(
            accelerator="gpu",
            devices=[0],
            strategy=strategy,
            max_epochs=1,
            precision="64-true",
            logger=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )
        trainer.fit(model, datamodule=datamodule)
        weights.append(model.cpu().state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=1e-10)


class ManyLabels(Digits):
    """The labels say whether a digit is even, over 4 and zero."""

    def __init__(self) -> None:
        super().__init__(batch_size=50)
        self.spec = replace(self.spec, task="multilabel", labels=("even", "over 4", "zero"), label_counts=())
        for part in self.samples.values():
            digits = part.labels
            part.labels = torch.stack([digits % 2 == 0, digits > 4, digits == 0], dim=1).long()


def test_metrics_of_several_labels_are_those_of_the_samples() -> None:
    datamodule = ManyLabels()
    model = make_classifier(datamodule.spec, label_smoothing=0.1)
    trainer = make_trainer(max_epochs=5)
    trainer.fit(model, datamodule=datamodule)
    assert trainer.callback_metrics["train/acc"] > 0.75
    (figures,) = trainer.test(model, datamodule=datamodule, verbose=False)
    samples = datamodule.samples["test"]
    with torch.inference_mode():
        logits = model(samples.inputs)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, samples.labels.float())
    assert figures["test/acc"] == pytest.approx(((logits > 0) == samples.labels).float().mean().item())
    assert figures["test/loss"] == pytest.approx(loss.item(), rel=1e-6)
    counts = model.confusion_matrix.compute()
    assert counts.shape == (3, 2, 2)
    assert counts.sum((1, 2)).tolist() == [len(samples)] * 3
    assert counts[2, 1, 1] == ((logits[:, 2] > 0) & (samples.labels[:, 2] == 1)).sum()
    with pytest.raises(UserError, match=r"model.class_weights is for one label a sample"):
        make_classifier(datamodule.spec, class_weights="balanced")
    with pytest.raises(UserError, match="the data has numbers to predict, and no labels"):
        make_classifier(replace(datamodule.spec, task="regression", labels=()))
