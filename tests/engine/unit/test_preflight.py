"""The checks before the first step."""

import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from digits import Digits, linear
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from {{ cookiecutter.package_name }}.engine.distributed.devices import Devices
from {{ cookiecutter.package_name }}.engine.distributed.plan import BatchSplit, Plan
from {{ cookiecutter.package_name }}.engine.distributed.strategies import OneProcess
from {{ cookiecutter.package_name }}.engine.errors import Fault, UserError
from {{ cookiecutter.package_name }}.engine.export import rehearsal
from {{ cookiecutter.package_name }}.engine.export.signature import GateFailure
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training import preflight
from {{ cookiecutter.package_name }}.engine.training.callbacks.checkpoint_contents import random_state
from {{ cookiecutter.package_name }}.models.classifier import Classifier


class Noise(Dataset[Any]):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        return torch.tensor([float(np.random.random()), math.nan]), torch.rand(()).item()


class OwnGenerator(Noise):
    """As that of Albumentations."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(1)

    def __getitem__(self, index: int) -> Any:
        return {"number": self.generator.random(2)}


def with_noise(samples: Any) -> Tensor:
    return torch.rand(len(samples))


def as_sparse(samples: Any) -> Tensor:
    return torch.eye(len(samples)).to_sparse()


@pytest.mark.parametrize(
    ("dataset", "collate", "sentence"),
    [
        (OwnGenerator(), None, r"OwnGenerator draws random numbers from a generator of its own"),
        (OwnGenerator(), list, r"OwnGenerator draws random numbers from a generator of its own"),
        (TensorDataset(torch.zeros(2)), as_sparse, ""),
        (Noise(), with_noise, r"the collate_fn of Noise draws random numbers"),
        (TensorDataset(torch.zeros(2)), with_noise, r"the collate_fn of TensorDataset draws random numbers"),
        (Noise(), None, ""),
        (TensorDataset(torch.zeros(2)), None, ""),
    ],
)
def test_random_numbers_that_cannot_be_seeded_for_a_sample_are_reported(
    dataset: Any, collate: Any, sentence: str
) -> None:
    before = random_state()["torch"]
    found = list(preflight.random_numbers_out_of_reach(DataLoader(dataset, collate_fn=collate)))
    assert [sentence in each for each in found] == ([True] if sentence else [])
    assert torch.equal(random_state()["torch"], before)


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


@pytest.mark.skipif(not preflight.SHARED_MEMORY.is_dir(), reason="not run: this system has no /dev/shm")
def test_shared_memory_must_hold_prefetched_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = SimpleNamespace(num_workers=3, prefetch_factor=2, batch_size=127)
    trainer: Any = SimpleNamespace(world_size=4, num_nodes=2, accumulate_grad_batches=1)
    needed = 3 * 2 * 2 * 32 * 64  # workers, processes of a machine, batches that each prefetches, samples of 64 bytes
    set_free_space(monkeypatch, needed)
    preflight.check_shared_memory(loader, 64, trainer)
    set_free_space(monkeypatch, needed - 1)
    with pytest.raises(Fault, match=r"6 processes that read samples need .* --shm-size"):
        preflight.check_shared_memory(loader, 64, trainer)


def test_first_batch_is_unshuffled() -> None:
    datamodule = Digits()
    x, y = preflight.first_batch(datamodule.train_dataloader())
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
    x, y = (tensor[:4] for tensor in preflight.first_batch(datamodule.train_dataloader()))
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
        return outputs if float(outputs.detach().isnan().sum()) >= 0 else -outputs


class Squeezed(Unexportable):
    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        return outputs.squeeze()


class Worded(Unexportable):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.net(x), "words": ["a"] * len(x)}


class OverTheBatch(Unexportable):
    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        return outputs.softmax(0)


class Mistaken(Unexportable):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 1)


class Plain(Classifier):
    """Exports what its network returns, and takes its loss from a part of it."""

    deployed = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(self(batch[0])["logits"], batch[1]))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (linear, ""),
        (Unexportable, "format 'onnx' cannot express this network"),
        (Squeezed, r"forward of Squeezed \(test_preflight.py:\d+\) answers 1 samples with \(10,\) as 'logits'"),
        (Worded, r"forward of Worded \(test_preflight.py:\d+\) returns a list as 'words': a tensor is needed"),
        (OverTheBatch, "the answer for a sample depends on the rest of its batch"),
        (Mistaken, r"permute"),
    ],
)
def test_network_that_cannot_be_exported_is_reported_or_refused_before_training(
    net: Callable[[DataSpec], nn.Module],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    datamodule = Digits()
    kind = Plain if net is Worded else Classifier
    monkeypatch.setattr(rehearsal, "build_model", lambda section, spec: kind(spec, net, torch.optim.SGD))
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[])
    model = kind(datamodule.spec, net, torch.optim.SGD)
    caplog.set_level("INFO")
    before, threads = random_state()["torch"], torch.get_num_threads()
    torch.set_num_threads(3)

    def begin(is_required: bool) -> None:
        rehearse = partial(rehearsal.rehearse, is_required, {})
        preflight.before_training(tmp_path, None, datamodule, datamodule.spec, model, trainer, rehearse)

    if net is linear:
        begin(is_required=True)
        assert "the export to onnx and torchscript, in " in caplog.text
    else:
        sentence = rf"could not be exported once it is trained: .*{reason}.*; rehearse_export=warn"
        with pytest.raises(GateFailure, match=sentence):
            begin(is_required=True)
        begin(is_required=False)
        assert "warning     this network could not be exported once it is trained: " in caplog.text
        assert "rehearsed" not in caplog.text
    assert torch.equal(random_state()["torch"], before), "random numbers of the training must not change"
    assert torch.get_num_threads() == 3, "the training would be slower, and sum in another order"
    torch.set_num_threads(threads)


def test_run_without_a_data_spec_is_rehearsed_and_may_have_loaders_of_any_kind(tmp_path: Path) -> None:
    rehearsed: list[object] = []

    def rehearse(spec: object, datamodule: object) -> None:
        rehearsed.append(datamodule)

    trainer: Any = SimpleNamespace(checkpoint_callbacks=[])
    for loader in (DataLoader(TensorDataset(torch.zeros(4, 2)), batch_size=2), [1, 2]):
        datamodule = pl.LightningDataModule.from_datasets(TensorDataset(torch.zeros(4, 2)))
        datamodule.train_dataloader = lambda loader=loader: loader  # type: ignore[method-assign,misc]
        preflight.before_training(tmp_path, None, datamodule, None, Whole(), trainer, rehearse)
    assert len(rehearsed) == 1, "loaders that are no DataLoader are not looked into"


def test_data_with_a_spec_is_checked_whatever_its_sampler(tmp_path: Path) -> None:
    class Backwards(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(99, -1, -1))

        def __len__(self) -> int:
            return 100

    datamodule, rehearsed = Digits(), []
    samples = datamodule.samples["train"]
    loader = DataLoader(samples, 10, sampler=Backwards(), collate_fn=lambda batch: batch)
    datamodule.train_dataloader = lambda: loader  # type: ignore[method-assign]
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[])
    preflight.before_training(
        tmp_path, None, datamodule, datamodule.spec, Whole(), trainer, lambda *_: rehearsed.append(True)
    )
    assert rehearsed


@pytest.mark.parametrize("samples", [[("a.png", 0)], 45])
def test_attribute_samples_of_a_data_set_is_its_own_affair(samples: Any) -> None:
    """torchvision's ImageFolder has such a list."""
    dataset = TensorDataset(torch.arange(3))
    dataset.samples = samples  # type: ignore[attr-defined]
    assert preflight.first_batch(DataLoader(dataset))[0].tolist() == [0, 1, 2]


class Whole(pl.LightningModule):
    def training_step(self, *_: Any) -> None: ...
    def test_step(self, *_: Any) -> None: ...
    def configure_optimizers(self) -> None: ...


class Untrainable(pl.LightningModule):
    def configure_optimizers(self) -> None: ...


class WithoutOptimizer(pl.LightningModule):
    def training_step(self, *_: Any) -> None: ...


class Untested(pl.LightningModule):
    def training_step(self, *_: Any) -> None: ...
    def configure_optimizers(self) -> None: ...


class Manual(Whole):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class OnlyTraining(pl.LightningDataModule):
    def train_dataloader(self) -> Any: ...


def planned(split: BatchSplit = BatchSplit(64, 1, 1), **trainer: Any) -> Plan:  # noqa: B008
    return Plan(Devices("cpu", (0,)), OneProcess("single"), split, trainer)


@pytest.mark.parametrize(
    ("model", "datamodule", "plan", "sentence"),
    [
        (Untrainable, Digits, planned(), r"^Untrainable has no training_step: write the method, as Lightning's"),
        (WithoutOptimizer, Digits, planned(), r"^WithoutOptimizer has no configure_optimizers: write the method"),
        (Whole, pl.LightningDataModule, planned(), r"^LightningDataModule has no train_dataloader: write the method"),
        (Untested, Digits, planned(), r"^Untested has no test_step: write the method, or set test=false"),
        (Whole, OnlyTraining, planned(), r"^OnlyTraining has no test_dataloader: write the method, or set test=false"),
        (
            Manual,
            Digits,
            planned(gradient_clip_val=1.0),
            r"^trainer.gradient_clip_val cannot follow manual optimisation",
        ),
        (Manual, Digits, planned(BatchSplit(64, 1, 2)), r"^data.micro_batch_size cannot follow manual optimisation"),
        (Manual, Digits, planned(BatchSplit(64, 1, 1, True)), r"^data.micro_batch_size cannot follow manual"),
    ],
)
def test_model_or_data_without_what_a_run_calls_is_refused(
    model: type[pl.LightningModule], datamodule: type[pl.LightningDataModule], plan: Plan, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        preflight.check_hooks(model(), datamodule(), plan, tests=True)


def test_what_a_run_does_not_call_may_be_missing() -> None:
    preflight.check_hooks(Untested(), OnlyTraining(), planned(), tests=False)
    preflight.check_hooks(Manual(), Digits(), planned(), tests=True)
    preflight.check_hooks(Whole(), Digits(), planned(BatchSplit(64, 1, 2), gradient_clip_val=1.0), tests=True)
