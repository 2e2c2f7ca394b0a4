"""Callbacks: the micro-batch finder and the random state in checkpoints."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from digits import Digits, linear
from torch import Tensor, nn

from {{ cookiecutter.package_name }}.engine.distributed.samplers import BatchSplit
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training.callbacks.checkpoint_contents import CheckpointContents
from {{ cookiecutter.package_name }}.engine.training.callbacks.micro_batch_finder import MicroBatchFinder
from {{ cookiecutter.package_name }}.models.classifier import Classifier


class SmallDevice(nn.Module):
    """A network that raises a GPU's out-of-memory error for more than `room` samples."""

    def __init__(self, spec: DataSpec, room: int) -> None:
        super().__init__()
        self.net = linear(spec, dropout=0.5)
        self.norm = nn.BatchNorm1d(spec.num_outputs)
        self.room = room
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        self.largest = max(self.largest, len(x))
        return self.norm(self.net(x)) if self.training else self.net(x)


def fit(room: int, micro_batch_size: int | str, limit: int | None = 3) -> tuple[Classifier, pl.Trainer]:
    pl.seed_everything(3, verbose=False)
    datamodule = Digits(batch_size=64)
    split = BatchSplit.of(64, 1, micro_batch_size)
    model = Classifier(datamodule.spec, lambda spec: SmallDevice(spec, room), torch.optim.SGD)
    callbacks = [MicroBatchFinder(split)] if micro_batch_size == "auto" else []
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        accumulate_grad_batches=split.num_steps,
        limit_train_batches=None if limit is None else limit * split.num_steps,
        callbacks=callbacks,
    )
    trainer.fit(model, datamodule=datamodule)
    return model, trainer


@pytest.mark.parametrize(("room", "fitting"), [(64, 64), (63, 32), (20, 16)])
def test_auto_finds_the_largest_micro_batch_that_fits_and_changes_nothing(
    room: int, fitting: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, trainer = fit(room, "auto")
    assert trainer.accumulate_grad_batches == 64 // fitting
    assert trainer.global_step == 3, "the limit counts batches, not micro-batches"
    assert model.net[1].largest == fitting, "validation holds no more at once than training"
    assert str(BatchSplit.of(64, 1, fitting)) in caplog.text
    expected, _ = fit(room, fitting)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_network_that_fits_no_sample_is_refused() -> None:
    with pytest.raises(UserError, match="not even one sample fits a device"):
        fit(0, "auto")


def test_error_that_is_not_about_memory_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SmallDevice, x: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(SmallDevice, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(64, "auto")


def draws() -> tuple[Any, ...]:
    return torch.rand(2).tolist(), float(np.random.rand()), random.random()


def test_random_numbers_continue_from_the_checkpoint() -> None:
    model, trainer = fit(64, 64)
    checkpoint: dict[str, Any] = {}
    CheckpointContents({}).on_save_checkpoint(trainer, model, checkpoint)
    expected = draws()
    resumed = CheckpointContents({})
    resumed.on_load_checkpoint(trainer, model, checkpoint)
    draws()
    resumed.on_train_start(trainer, model)
    assert draws() == expected
    resumed.on_train_start(trainer, model)
    assert draws() != expected, "the state is restored once"
