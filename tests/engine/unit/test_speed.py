"""What makes a step fast, and that it changes nothing."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from digits import Digits, convolutions, linear, one_device, optimization
from lightning.pytorch.loggers import CSVLogger

from {{ cookiecutter.package_name }}.engine.distributed.strategies import has_changing_buffers
from {{ cookiecutter.package_name }}.engine.training.callbacks.monitoring import DataWait
from {{ cookiecutter.package_name }}.models.classifier import Classifier


def make_classifier(datamodule: Digits, **options: Any) -> Classifier:
    torch.manual_seed(1)
    return Classifier(datamodule.spec, linear, partial(torch.optim.AdamW, lr=0.01, fused=True), **options)


def make_trainer(**options: object) -> pl.Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "strategy": one_device()}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **(defaults | options))  # type: ignore[arg-type]


def test_training_imports_nothing_that_only_exports_and_servers_use() -> None:
    package = Classifier.__module__.split(".")[0]
    unused = "sys.modules.keys() & {'onnxruntime', 'onnx', 'httptools'}"
    code = f"import sys, {package}.engine.workflows.training; assert not {unused}, {unused}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="not run: glibc alone gives memory back at once")
def test_training_on_the_cpu_keeps_the_memory_that_a_step_has_freed() -> None:
    """By the pages that the system has to hand out in ten steps; a setting of the environment comes first."""
    package = Classifier.__module__.split(".")[0]
    code = (
        "import resource, torch\n"
        f"from {package}.engine.distributed.plan import make_plan\n"
        f"from {package}.engine.training.build import build_trainer\n"
        "from pathlib import Path\n"
        "plan = make_plan({'trainer': {'_target_': 'lightning.pytorch.Trainer', 'accelerator': 'cpu', 'devices': 1,\n"
        "    'enable_progress_bar': False}, 'strategy': {'name': 'single'}, 'data': {'batch_size': 1}})\n"
        "build_trainer(plan, [], [], Path('.'))\n"
        "def step():\n"
        "    first, second = torch.ones(2**23), torch.ones(2**24)\n"
        "step()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    num_pages = []
    for given in ({}, {"MALLOC_MMAP_THRESHOLD_": "1000000"}):
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, env=environment | given, capture_output=True, text=True, check=True)
        num_pages.append(int(done.stdout.split()[-1]))
    assert num_pages[0] < num_pages[1] / 10


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
        model = Classifier(datamodule.spec, convolutions, partial(torch.optim.AdamW, lr=0.01, fused=True))
        options = {"precision": "64-true", "callbacks": [optimization(channels_last=channels_last)]}
        make_trainer(max_epochs=1, num_sanity_val_steps=0, **options).fit(model, datamodule=datamodule)
        weights[channels_last] = list(model.parameters())
    convolution = weights[True][3]
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert not convolution.is_contiguous()
    for one, other in zip(weights[False], weights[True], strict=True):
        assert (one - other).abs().max() < 1e-10
