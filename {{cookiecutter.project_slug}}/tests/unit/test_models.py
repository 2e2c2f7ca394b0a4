"""The networks and the LightningModule around them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from {{ cookiecutter.package_name }}.data.digits import DigitsDataModule
from {{ cookiecutter.package_name }}.data.samples import SamplesInMemory
from {{ cookiecutter.package_name }}.data.spec import DataSpec
from {{ cookiecutter.package_name }}.models.classifier import Classifier
from {{ cookiecutter.package_name }}.models.cnn import CNN
from {{ cookiecutter.package_name }}.models.layers import Normalize
from {{ cookiecutter.package_name }}.models.mlp import MLP
from {{ cookiecutter.package_name }}.refusal import Refusal
from {{ cookiecutter.package_name }}.strategies.dp import DataParallelStrategy
from {{ cookiecutter.package_name }}.strategies.samplers import EvaluationBatchSampler, TrainingBatchSampler


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
        net=lambda spec: MLP(spec, widths=[8], dropout=0.0),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        **options,
    )


def make_trainer(**options: object) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(**quiet, **options, enable_model_summary=False, use_distributed_sampler=False)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 33, 20), (1, 4, 4)])
def test_networks_are_sized_by_the_spec(shape: tuple[int, ...]) -> None:
    spec = make_spec(shape, num_labels=5)
    batch = torch.zeros(2, *shape)
    assert CNN(spec, widths=[8, 8, 8], num_groups=4, dropout=0.1)(batch).shape == (2, 5)
    assert MLP(spec, widths=[8], dropout=0.1)(batch).shape == (2, 5)


def test_cnn_answers_a_sample_alike_in_any_batch() -> None:
    cnn = CNN(make_spec(), widths=[8, 16], num_groups=4, dropout=0.0).train().double()
    batch = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(cnn(batch)[:2], cnn(batch[:2]), rtol=0, atol=1e-12)


def test_normalize_takes_raw_pixels_channel_by_channel() -> None:
    batch = torch.tensor([100, 101, 102], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(Normalize(make_spec((3, 4, 4)))(batch), torch.zeros(2, 3, 4, 4))


def test_test_figures_are_those_of_the_samples() -> None:
    datamodule = DigitsDataModule(batch_size=50)
    model = make_classifier(datamodule.spec)
    (figures,) = make_trainer().test(model, datamodule=datamodule, verbose=False)
    samples = datamodule.samples["test"]
    with torch.inference_mode():
        logits = model(samples.inputs)
    assert figures["test/acc"] == pytest.approx((logits.argmax(1) == samples.labels).float().mean().item())
    assert figures["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, samples.labels).item(), rel=1e-6)
    assert model.confusion_matrix is not None
    assert model.confusion_matrix.sum() == len(samples)


def test_an_empty_batch_counts_nothing() -> None:
    spec = make_spec()
    samples = SamplesInMemory(torch.zeros(1, *spec.input_shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    (second_of_two,) = EvaluationBatchSampler(1, batch_size=4, rank=1, world_size=2)
    batch = samples.__getitems__(second_of_two)
    assert batch[0].shape == (0, *spec.input_shape)
    model = make_classifier(spec)
    model.test_step(batch, 0)
    assert model.test_confusion.confmat.sum() == 0


def test_rank_without_samples_sums_in_the_dtype_of_the_others() -> None:
    """In 64-true the ranks would otherwise reduce float32 with float64."""
    model = make_classifier(make_spec()).double()
    model._count("test", torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.long), torch.zeros(()))
    assert model._no_samples().loss.dtype == model._totals["test"].loss.dtype == torch.float64


@pytest.mark.parametrize("make", [partial(CNN, widths=[8, 8, 8], num_groups=4), partial(MLP, widths=[8, 8])])
def test_activation_checkpointing_changes_neither_gradients_nor_names(make: Callable[..., nn.Module]) -> None:
    """Dropout included: its mask is drawn again."""
    found = {}
    for num_segments in (0, 3):
        torch.manual_seed(3)
        net = make(make_spec(), dropout=0.5, checkpoint_segments=num_segments)
        net(torch.randn(6, 1, 8, 8)).square().sum().backward()
        found[num_segments] = {name: weight.grad for name, weight in net.named_parameters()}
    assert list(found[3]) == list(found[0])
    assert all(torch.equal(found[3][name], found[0][name]) for name in found[0])
    with pytest.raises(Refusal, match=r"model.net.checkpoint_segments=99 is out of range: give 0"):
        make(make_spec(), dropout=0.0, checkpoint_segments=99)


def test_activation_checkpointing_computes_its_layers_twice() -> None:
    net = MLP(make_spec(), widths=[8, 8], dropout=0.0, checkpoint_segments=2)
    calls: list[int] = []
    net.layers[1].register_forward_hook(lambda *_: calls.append(1))
    net(torch.randn(6, 1, 8, 8)).sum().backward()
    assert len(calls) == 2
    net.eval()(torch.randn(6, 1, 8, 8))
    assert len(calls) == 3, "evaluation keeps nothing, and has nothing to compute again"


def test_warm_up_rises_to_the_learning_rate_step_by_step() -> None:
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    datamodule = DigitsDataModule(batch_size=300)  # four steps an epoch
    model = make_classifier(datamodule.spec, warmup_steps=4, scheduler=partial(ExponentialLR, gamma=0.5))
    make_trainer(max_epochs=3, callbacks=[Rates()]).fit(model, datamodule=datamodule)
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, *[0.05] * 4, *[0.025] * 4])
    with pytest.raises(Refusal, match=r"model.warmup_steps=-1"):
        make_classifier(datamodule.spec, warmup_steps=-1)


def test_totals_are_exact_in_half_precision() -> None:
    """997 of 999: bfloat16 knows neither number."""
    model = make_classifier(make_spec()).bfloat16()
    y = torch.zeros(999, dtype=torch.long)
    logits = torch.tensor([[1.0, 0.0, 0.0]]).repeat(999, 1).bfloat16()
    logits[:2] = torch.tensor([0.0, 1.0, 0.0])
    model._count("test", logits, y, torch.ones((), dtype=torch.bfloat16))
    totals = model._totals["test"]
    assert (totals.loss, totals.correct, totals.count) == (999, 997, 999)


def test_debug_overfit_reaches_the_sampler() -> None:
    datamodule = DigitsDataModule()
    datamodule.trainer = make_trainer(overfit_batches=3)
    sampler = datamodule.train_dataloader().batch_sampler
    assert isinstance(sampler, TrainingBatchSampler)
    assert not sampler.reshuffle


def test_many_cores_and_an_unused_gpu_are_no_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every warning is an error here; the machine of 16 cores and a GPU is a stand-in."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    datamodule = DigitsDataModule()
    make_trainer(max_epochs=1).fit(make_classifier(datamodule.spec), datamodule=datamodule)
    monkeypatch.setattr("lightning.pytorch.accelerators.CUDAAccelerator.is_available", staticmethod(lambda: True))
    make_trainer(max_epochs=1)


@pytest.mark.gpu
def test_dp_on_a_gpu_gives_the_gradients_of_one_device() -> None:
    """Two replicas on one GPU: shows scatter, replicate and gather at work, not a speed."""
    weights = []
    for strategy in ("auto", DataParallelStrategy([torch.device("cuda", 0), torch.device("cuda", 0)])):
        pl.seed_everything(3, verbose=False)
        datamodule = DigitsDataModule(batch_size=400)
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
