"""What makes a step fast, and that it changes nothing."""

import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from digits import Digits, convolutions, linear
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from {{ cookiecutter.package_name }}.engine.training.callbacks.monitoring import DataWait
from {{ cookiecutter.package_name }}.engine.training.callbacks.checkpoint_contents import (
    random_state,
    set_random_state,
)
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.models.classifier import Classifier
from {{ cookiecutter.package_name }}.engine.benchmark.loop import HandWrittenLoop
from {{ cookiecutter.package_name }}.engine.distributed.strategies import has_changing_buffers

PERCEPTRON = partial(linear, width=16)


def make_classifier(
    datamodule: Digits, net: Callable[[DataSpec], nn.Module] = PERCEPTRON, **options: Any
) -> Classifier:
    torch.manual_seed(1)
    return Classifier(
        datamodule.spec,
        net,
        partial(torch.optim.AdamW, lr=0.01, fused=True),
        partial(ExponentialLR, gamma=0.5),
        label_smoothing=0.1,
        **options,
    )


def make_trainer(**options: object) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **(quiet | options))  # type: ignore[arg-type]


def tuned(datamodule: Digits) -> Classifier:
    """Its first layer is frozen, with the BatchNorm after it; the second is pretrained."""

    def net(spec: DataSpec) -> nn.Module:
        layers = [nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)]
        return nn.Sequential(nn.Flatten(), *layers)

    options = {"class_weights": [*range(1, 11)], "pretrained_lr_factor": 0.1, "freeze": ["net.1.1.*", "net.1.2.*"]}
    model = make_classifier(datamodule, net, **options)
    model.pretrained_names = frozenset({"net.1.1.weight", "net.1.3.weight"})
    return model


@pytest.mark.parametrize("make", [make_classifier, tuned])
def test_loop_written_by_hand_does_the_same_work(make: Callable[[Digits], Classifier]) -> None:
    """Else its time would say nothing: the same samples, steps and learning rates. It sums its figures in float32."""
    datamodule = Digits(batch_size=200)
    by_hand = make(datamodule)
    loop = HandWrittenLoop(by_hand, datamodule, torch.device("cpu"), 200, seed=42, precision="64-true")
    figures = [loop.epoch(number, 99, 99) for number in range(2)]
    trained = make(datamodule)
    trainer = make_trainer(max_epochs=2, precision="64-true", num_sanity_val_steps=0)
    trainer.fit(trained, datamodule=datamodule)
    for own, its in zip(trained.state_dict().values(), by_hand.state_dict().values(), strict=True):
        assert (own - its).abs().max() < 1e-12
    for name, figure in figures[-1].items():
        assert trainer.callback_metrics[name].item() == pytest.approx(figure, rel=1e-6), name


def test_loop_stops_where_it_is_told() -> None:
    datamodule = Digits(batch_size=64)
    loop = HandWrittenLoop(make_classifier(datamodule), datamodule, torch.device("cpu"), 64, seed=42)
    steps: list[int] = []
    loop.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    loop.epoch(0, train_batches=3, val_batches=1)
    assert len(steps) == 3


def test_training_imports_nothing_that_only_exports_and_servers_use() -> None:
    package = Classifier.__module__.split(".")[0]
    unused = "sys.modules.keys() & {'onnxruntime', 'onnx', 'fastapi'}"
    code = f"import sys, {package}.engine.workflows.training; assert not {unused}, {unused}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_time_that_was_spent_waiting_for_data_is_logged(tmp_path: Path) -> None:
    datamodule = Digits(batch_size=64)
    trainer = make_trainer(max_epochs=1, callbacks=[DataWait()], logger=CSVLogger(str(tmp_path)), log_every_n_steps=1)
    trainer.fit(make_classifier(datamodule), datamodule=datamodule)
    loader = trainer.train_dataloader
    assert 0 < trainer.callback_metrics["time/data"] == pytest.approx(loader.seconds_waited)


def test_ddp_sends_buffers_that_change_and_no_constants() -> None:
    model = make_classifier(Digits())
    assert not has_changing_buffers(model)
    assert not has_changing_buffers(make_classifier(Digits(), class_weights="balanced"))
    model.net.append(torch.nn.BatchNorm1d(10))
    assert has_changing_buffers(model)


def test_channels_last_changes_the_layout_alone() -> None:
    datamodule = Digits(batch_size=600)
    weights = {}
    for channels_last in (False, True):
        torch.manual_seed(1)
        net = convolutions
        model = Classifier(
            datamodule.spec, net, partial(torch.optim.AdamW, lr=0.01, fused=True), channels_last=channels_last
        )
        make_trainer(max_epochs=1, precision="64-true", num_sanity_val_steps=0).fit(model, datamodule=datamodule)
        weights[channels_last] = list(model.parameters())
    convolution = weights[True][3]
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert not convolution.is_contiguous()
    for one, other in zip(weights[False], weights[True], strict=True):
        assert (one - other).abs().max() < 1e-10


def test_random_states_of_earlier_versions_are_read() -> None:
    """They were lists."""
    state = random_state()
    drawn = (torch.rand(3), np.random.rand(), random.random())
    lists = {
        "torch": state["torch"].tolist(),
        "cuda": [],
        "numpy": [state["numpy"][0], state["numpy"][1].tolist(), *state["numpy"][2:]],
        "python": [state["python"][0], state["python"][1].tolist(), state["python"][2]],
    }
    for given in (state, lists):
        set_random_state(given)
        assert torch.equal(torch.rand(3), drawn[0])
        assert (np.random.rand(), random.random()) == drawn[1:]
