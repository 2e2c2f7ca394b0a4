"""The wiring of `strategy=dp`, on a CPU: torch's own DataParallel, with stand-ins for what moves tensors.

It shows what runs where and what comes together again, not that several GPUs work: that is for the tests marked `gpu`.
"""

import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.nn.parallel import _functions, comm, scatter_gather
from torch.utils.data import DataLoader

from digit_classifier.data.digits import DigitsDataModule
from digit_classifier.engine.data.samples import Batch
from digit_classifier.engine.distributed.strategies import DataParallelStrategy, OneDeviceStrategy
from digit_classifier.models.classifier import Classifier
from digit_classifier.models.mlp import MLP

DIGITS = DigitsDataModule()


class Call(NamedTuple):
    module: nn.Module
    thread: threading.Thread
    num_samples: int


class Watched(Classifier):
    """Notes down its calls; replicas are shallow copies, so they write into the same lists."""

    def __init__(self, dropout: float = 0.0, checkpoint_segments: int = 0) -> None:
        torch.manual_seed(3)
        super().__init__(
            DIGITS.spec,
            lambda spec: MLP(spec, [8], dropout, checkpoint_segments),
            lambda weights: torch.optim.SGD(weights, 0.1),
        )
        self.calls: list[Call] = []
        self.steps: list[Call] = []
        self.logged: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing():
            self.calls.append(Call(self, threading.current_thread(), len(x)))
        return super().forward(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.steps.append(Call(self, threading.current_thread(), len(batch[1])))
        return super().training_step(batch, batch_idx)

    def log(self, name: str, *args: Any, **options: Any) -> None:
        self.logged.append(name)
        super().log(name, *args, **options)

    def sizes(self) -> list[int]:
        """Two replicas of one batch come in either order."""
        return sorted(call.num_samples for call in self.calls)


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """DataParallel, replicate and parallel_apply are torch's own: two replicas, which run in two threads."""

    init = nn.DataParallel.__init__

    def init_on_cpu(replicated: nn.Module, *args: Any, **options: Any) -> None:
        init(replicated, *args, **options)
        replicated.src_device_obj = torch.device("cpu")  # tensors know no cpu:0

    def copies(tensors: Sequence[Tensor], devices: list[int]) -> list[list[Tensor]]:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    patch = monkeypatch.setattr
    patch(sys.modules[nn.DataParallel.__module__], "_get_available_device_type", lambda: "cpu")
    patch(nn.DataParallel, "__init__", init_on_cpu)
    patch(comm, "broadcast_coalesced", copies)
    patch(_functions, "Broadcast", SimpleNamespace(apply=lambda devices, *tensors: [*chain(*copies(tensors, devices))]))
    patch(scatter_gather, "Scatter", SimpleNamespace(apply=lambda devices, sizes, dim, x: x.chunk(len(devices), dim)))
    patch(scatter_gather, "Gather", SimpleNamespace(apply=lambda device, dim, *parts: torch.cat(parts, dim)))
    patch(torch.accelerator, "is_available", lambda: True)
    patch(torch.accelerator, "current_accelerator", lambda *_: torch.device("cpu"))
    patch(torch.accelerator, "current_stream", nullcontext)
    patch(torch.accelerator, "device_index", nullcontext)
    return [torch.device("cpu", 0), torch.device("cpu", 1)]


def batches(*sizes: int) -> list[Batch]:
    digits = DIGITS.samples["train"]
    inputs, labels = (whole[: sum(sizes)].split(sizes) for whole in (digits.inputs, digits.labels))
    return list(zip(inputs, labels, strict=True))


def make_trainer(strategy: Strategy | str, **options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    usual = {"precision": "64-true", "max_epochs": 1, "limit_val_batches": 0, "use_distributed_sampler": False}
    return pl.Trainer(accelerator="cpu", devices=1, strategy=strategy, **usual | quiet | options)


def fit(model: Watched, strategy: Strategy | str, *sizes: int, **options: Any) -> pl.Trainer:
    trainer, loader = make_trainer(strategy, **options), DataLoader(batches(*sizes), batch_size=None)
    trainer.fit(model, loader, val_dataloaders=loader)
    return trainer


def test_two_replicas_train_the_weights_of_one_device(two_devices: list[torch.device]) -> None:
    single, replicated = Watched(), Watched()
    fit(single, "auto", 9, 9, 9, 9)
    fit(replicated, DataParallelStrategy(two_devices), 9, 9, 9, 9)
    assert single.sizes() == [9] * 4
    assert replicated.sizes() == [4] * 4 + [5] * 4
    torch.testing.assert_close(replicated.state_dict(), single.state_dict(), rtol=0, atol=1e-10)
    trained, untrained = (model.net[1].layers[1].weight for model in (single, Watched().double()))
    assert not torch.allclose(trained, untrained, atol=1e-3)


@pytest.mark.parametrize("segments", [0, 6])
def test_replicas_drop_what_one_device_drops(two_devices: list[torch.device], segments: int) -> None:
    """Activation checkpointing calls their layers again, in the main thread here, and draws what nobody has drawn."""
    single, replicated, other = Watched(0.5), Watched(0.5, segments), Watched()
    fit(single, OneDeviceStrategy(torch.device("cpu")), 9, 9, 9, 9)
    fit(replicated, DataParallelStrategy(two_devices), 9, 9, 9, 9)
    torch.testing.assert_close(replicated.state_dict(), single.state_dict(), rtol=0, atol=1e-10)
    fit(other, OneDeviceStrategy(torch.device("cpu")), 9, 9, 9, 9)
    assert not torch.allclose(other.net[1].layers[1].weight, single.net[1].layers[1].weight, atol=1e-3)


def test_replicas_run_forward_and_the_module_runs_the_step(two_devices: list[torch.device]) -> None:
    """Lightning's own redirection would send every replica to the original module."""
    single, replicated = Watched(), Watched()
    expected = fit(single, "auto", 9, 9).callback_metrics
    figures = fit(replicated, DataParallelStrategy(two_devices), 9, 9).callback_metrics
    modules, threads = ({id(call[part]) for call in replicated.calls} for part in (0, 1))
    assert len(modules) == len(threads) == len(replicated.calls) == 4
    assert id(replicated) not in modules
    assert id(threading.main_thread()) not in threads
    assert replicated.steps == [(replicated, threading.main_thread(), 9)] * 2
    assert replicated.logged == single.logged != []
    torch.testing.assert_close(figures, expected, rtol=0, atol=1e-10)


def test_replicas_compute_in_the_precision_of_the_trainer(two_devices: list[torch.device]) -> None:
    """A thread does not inherit the autocast around it."""
    model, dtypes = Watched(), []
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(lambda part, args, output: dtypes.append(output.dtype))
    fit(model, DataParallelStrategy(two_devices), 9, precision="bf16-mixed")
    assert model.sizes() == [4, 5]
    assert dtypes == [torch.bfloat16] * 4  # two layers in each


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit and, in the metrics, of torchmetrics
def test_the_module_stays_as_it_is(two_devices: list[torch.device]) -> None:
    model, keys = Watched(), []
    names = [name for name, _ in model.named_modules()]
    watch = LambdaCallback(on_train_batch_end=lambda trainer, module, *rest: keys.append(list(module.state_dict())))
    fit(model, DataParallelStrategy(two_devices), 9, 9, precision="32-true", callbacks=watch)
    assert [*keys, list(model.state_dict())] == [list(Watched().state_dict())] * 3
    assert [name for name, _ in model.named_modules()] == names
    assert "forward" not in vars(model)
    ((inputs, _),) = batches(9)
    traced = torch.jit.trace(model.eval(), inputs)
    torch.testing.assert_close(traced(inputs), model.net(inputs))
    model(inputs)
    assert model.calls[-1] == (model, threading.main_thread(), 9)


def test_an_error_in_a_replica_ends_the_fit_and_leaves_the_module_as_it_is(two_devices: list[torch.device]) -> None:
    model = Watched()
    model.net = nn.Sequential(nn.Linear(5, 3))
    with pytest.raises(RuntimeError, match=r"Caught RuntimeError in replica \d on device \d"):
        fit(model, DataParallelStrategy(two_devices), 9)
    assert "forward" not in vars(model)


def test_one_device_is_left_alone(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.DataParallel, "__init__", None)  # to use it would be an error
    single, alone = Watched(), Watched()
    fit(single, "auto", 9, 9)
    fit(alone, DataParallelStrategy([torch.device("cpu")]), 9, 9)
    assert alone.calls == [(alone, threading.main_thread(), 9)] * 2
    torch.testing.assert_close(alone.state_dict(), single.state_dict(), rtol=0, atol=0)
    (said,) = [record for record in caplog.records if record.name == DataParallelStrategy.__module__]
    assert (said.levelname, said.message.split(" and ")[0]) == ("WARNING", "strategy=dp has one device (cpu)")


@pytest.mark.parametrize(("size", "parts"), [(9, [4, 5]), (2, [1, 1]), (1, [1])])
def test_gradients_are_those_of_the_whole_batch(two_devices: list[torch.device], size: int, parts: list[int]) -> None:
    model, plain = Watched(), Watched().double()
    ((inputs, labels),) = batches(size)
    nn.functional.cross_entropy(plain.net(inputs), labels).backward()
    fit(model, DataParallelStrategy(two_devices), size)
    assert model.sizes() == parts
    gradients, expected = ({name: p.grad for name, p in each.named_parameters()} for each in (model, plain))
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-12)


def test_evaluation_counts_every_sample_once(two_devices: list[torch.device]) -> None:
    single, replicated = Watched(), Watched()
    loader = DataLoader(batches(9, 4, 1), batch_size=None)
    (expected,) = make_trainer("auto").test(single, loader, verbose=False)
    (figures,) = make_trainer(DataParallelStrategy(two_devices)).test(replicated, loader, verbose=False)
    assert figures == pytest.approx(expected)
    assert replicated.sizes() == [1, 2, 2, 4, 5]
    counts = replicated.confusion_matrix.compute()
    assert counts.sum() == 14
    assert torch.equal(counts, single.confusion_matrix.compute())
