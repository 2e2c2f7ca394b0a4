"""The checks before the first step."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digits import Digits, linear
from torch import Tensor, nn

from {{ cookiecutter.package_name }}.engine.data import samples
from {{ cookiecutter.package_name }}.engine.errors import Fault, UserError
from {{ cookiecutter.package_name }}.engine.export import rehearsal
from {{ cookiecutter.package_name }}.engine.export.signature import GateFailure
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training import preflight
from {{ cookiecutter.package_name }}.engine.training.callbacks.checkpoint_contents import random_state
from {{ cookiecutter.package_name }}.models.classifier import Classifier


def set_free_space(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=num_bytes))


def test_disk_must_have_room_for_all_checkpoints(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Classifier(Digits().spec, linear, torch.optim.SGD)
    size = 3 * 4 * sum(weight.numel() for weight in model.parameters())
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[SimpleNamespace(save_top_k=1), SimpleNamespace(save_top_k=2)])
    set_free_space(monkeypatch, 5 * size)
    preflight.check_disk(tmp_path, trainer, model)
    set_free_space(monkeypatch, 5 * size - 1)
    with pytest.raises(Fault, match=r"MiB left, and up to 5 checkpoints of .* or give paths.log_dir="):
        preflight.check_disk(tmp_path, trainer, model)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"x")  # its space is reused
    preflight.check_disk(tmp_path, trainer, model)


@pytest.mark.skipif(not samples.SHARED_MEMORY.is_dir(), reason="not run: this system has no /dev/shm")
def test_shared_memory_must_hold_prefetched_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Digits().spec
    needed = 3 * 2 * 64 * 64  # processes, batches that each prefetches, samples of 64 bytes
    set_free_space(monkeypatch, needed)
    samples.check_shared_memory(3, spec, 64)
    set_free_space(monkeypatch, needed - 1)
    with pytest.raises(Fault, match=r"3 processes that read samples need .* --shm-size"):
        samples.check_shared_memory(3, spec, 64)


def test_first_batch_is_unshuffled() -> None:
    datamodule = Digits()
    x, y = preflight.first_batch(datamodule)
    assert len(x) == len(y) == 64
    assert torch.equal(x, datamodule.samples["train"].inputs[:64])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda x, y: (x.float(), y), "holds float32"),
        (lambda x, y: (x[..., :4], y), "the first batch holds uint8"),
        (lambda x, y: (x, y[:3]), "4 samples and 3 labels"),
        (lambda x, y: (x, torch.tensor([0, 1, 10, 2])), "sample 2 of the training data has the label 10, but the 10"),
        (lambda x, y: (x, torch.tensor([0, -1, 1, 2])), "sample 1 of the training data has the label -1"),
        (lambda x, y: (x, torch.tensor([0.0, float("nan"), 1, 2])), "targets that are NaN"),
    ],
)
def test_batch_that_does_not_fit_the_spec_is_refused(
    spoil: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], sentence: str
) -> None:
    datamodule = Digits()
    x, y = (tensor[:4] for tensor in preflight.first_batch(datamodule))
    preflight.check_samples(x, y, datamodule.spec)
    with pytest.raises(UserError, match=sentence):
        preflight.check_samples(*spoil(x, y), datamodule.spec)


def test_values_out_of_range_are_refused() -> None:
    spec = DataSpec("floats", "regression", (2,), "float32", (0.0, 1.0), (), (0.0,), (1.0,))
    x, y = torch.tensor([[0.0, 1.0], [float("nan"), 0.5]]), torch.zeros(2)
    preflight.check_samples(x, y, spec)  # NaN is a gap, which the network fills
    with pytest.raises(UserError, match=r"sample 1 of the training data holds values outside of 0 to 1"):
        preflight.check_samples(torch.tensor([[0.0, 1.0], [2.0, 0.5]]), y, spec)


class Unexportable(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.net = linear(spec)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        return outputs if float(outputs.detach().sum()) > 0 else -outputs


@pytest.mark.parametrize("net", [linear, Unexportable])
def test_network_that_cannot_be_exported_is_refused_before_training(
    net: Callable[[DataSpec], nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    datamodule = Digits()
    monkeypatch.setattr(rehearsal, "build_model", lambda section, spec: Classifier(spec, net, torch.optim.SGD))
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[])
    rehearse = partial(rehearsal.rehearse, {})
    model = Classifier(datamodule.spec, net, torch.optim.SGD)
    caplog.set_level("INFO")
    before, threads = random_state()["torch"], torch.get_num_threads()
    torch.set_num_threads(3)
    if net is linear:
        preflight.before_training(tmp_path, None, datamodule, model, trainer, rehearse)
        assert "the export to onnx and torchscript, in " in caplog.text
    else:
        with pytest.raises(GateFailure, match=r"could not be exported once it is trained: .*rehearse_export=false"):
            preflight.before_training(tmp_path, None, datamodule, model, trainer, rehearse)
    assert torch.equal(random_state()["torch"], before), "random numbers of the training must not change"
    assert torch.get_num_threads() == 3, "the training would be slower, and sum in another order"
    torch.set_num_threads(threads)
