"""The LightningModule: metrics, sums of an epoch, warm-up and dp."""

from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from digits import Digits, linear
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from {{ cookiecutter.package_name }}.engine.data.samples import SamplesInMemory
from {{ cookiecutter.package_name }}.engine.distributed.samplers import EvaluationBatchSampler, TrainingBatchSampler
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
    assert model.counts is not None
    assert model.counts.sum() == len(samples)


def test_empty_batch_changes_no_metric() -> None:
    spec = make_spec()
    samples = SamplesInMemory(torch.zeros(1, *spec.input_shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    (second_of_two,) = EvaluationBatchSampler(1, batch_size=4, rank=1, world_size=2)
    batch = samples.__getitems__(second_of_two)
    assert batch[0].shape == (0, *spec.input_shape)
    model = make_classifier(spec)
    model.test_step(batch, 0)
    assert model.test_counts.confmat.sum() == 0


def test_rank_without_samples_has_sums_of_the_same_dtype() -> None:
    """With 64-true the ranks would otherwise reduce float32 with float64."""
    model = make_classifier(make_spec()).double()
    model._add("test", torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.long), torch.zeros(()))
    assert model._zero_sums().loss.dtype == model._sums["test"].loss.dtype == torch.float64


def test_warm_up_rises_to_the_learning_rate_step_by_step() -> None:
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    datamodule = Digits(batch_size=300)  # four steps an epoch
    model = make_classifier(datamodule.spec, warmup_steps=4, scheduler=partial(ExponentialLR, gamma=0.5))
    make_trainer(max_epochs=3, callbacks=[Rates()]).fit(model, datamodule=datamodule)
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, *[0.05] * 4, *[0.025] * 4])
    with pytest.raises(UserError, match=r"model.warmup_steps=-1"):
        make_classifier(datamodule.spec, warmup_steps=-1)


def test_epoch_sums_are_exact_in_half_precision() -> None:
    """bfloat16 cannot represent 997 or 999."""
    model = make_classifier(make_spec()).bfloat16()
    y = torch.zeros(999, dtype=torch.long)
    logits = torch.tensor([[1.0, 0.0, 0.0]]).repeat(999, 1).bfloat16()
    logits[:2] = torch.tensor([0.0, 1.0, 0.0])
    model._add("test", logits, y, torch.ones((), dtype=torch.bfloat16))
    sums = model._sums["test"]
    assert (sums.loss, sums.metric, sums.count) == (999, 997, 999)


def test_debug_overfit_reaches_the_sampler() -> None:
    datamodule = Digits()
    datamodule.trainer = make_trainer(overfit_batches=3)
    sampler = datamodule.train_dataloader().batch_sampler
    assert isinstance(sampler, TrainingBatchSampler)
    assert not sampler.reshuffle


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
    assert model.counts is not None
    assert model.counts.shape == (3, 2, 2)
    assert model.counts[2].sum() == len(samples)
    with pytest.raises(UserError, match=r"model.class_weights is for one label a sample"):
        make_classifier(datamodule.spec, class_weights="balanced")
    with pytest.raises(UserError, match="the data has numbers to predict, and no labels"):
        make_classifier(replace(datamodule.spec, task="regression", labels=()))
