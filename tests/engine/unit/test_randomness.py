"""Random numbers of a training step: the same however a batch is split."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import torchrun
from digits import one_device
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from {{ cookiecutter.package_name }}.engine.distributed import randomness
from {{ cookiecutter.package_name }}.engine.distributed.batch_norm import SyncedBatchNorm, depends_on_split
from {{ cookiecutter.package_name }}.engine.distributed.randomness import SAMPLE_LAYERS, Draws, sample_uniform
from {{ cookiecutter.package_name }}.engine.errors import UserError

# Options of tests/engine/noisy.py, each of which is one epoch of 97 samples unless it says otherwise.
RUNS: list[dict[str, Any]] = [
    {},
    {"num_steps": 2},
    {"num_steps": 3, "data": {"batch_size": 31, "kind": "split"}},
    {"data": {"kind": "weighted"}},  # with replacement
    {"data": {"kind": "iterable"}},
    {"net": "Normed", "data": {"num_train": 98}},  # on three processes, the last batch has a sample for two
]


def trained(num_processes: int) -> list[dict[str, list[float]]]:
    script = Path(__file__).parents[1] / "noisy.py"
    arguments = ("--standalone", "--nproc-per-node", str(num_processes), script.name, json.dumps(RUNS))
    printed = torchrun(script.parent, *arguments)
    (line,) = (line for line in printed.splitlines() if line.startswith("FOUND "))
    found: list[dict[str, list[float]]] = json.loads(line.removeprefix("FOUND "))
    return found


@pytest.mark.slow
def test_random_layers_and_synchronised_statistics_give_the_same_weights_on_one_two_and_three_processes() -> None:
    alone = trained(1)
    assert_equal(alone[1], alone[0])
    for num_processes in (2, 3):
        for found, expected in zip(trained(num_processes), alone, strict=True):
            assert_equal(found, expected)


def assert_equal(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    for name, weights in expected.items():
        assert found[name] == pytest.approx(weights, abs=1e-10), name


class OwnNorm(nn.BatchNorm1d):
    pass


def test_network_whose_batch_norm_makes_the_result_depend_on_the_split_is_reported() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert depends_on_split(net[0], 2, 2, False) is None
    assert depends_on_split(net, 1, 1, False) is None
    assert depends_on_split(net, 2, 1, True) is None
    assert "each device alone: trainer.sync_batchnorm=true takes" in str(depends_on_split(net, 2, 1, False))
    assert "each micro-batch alone" in str(depends_on_split(net, 1, 2, True))
    assert depends_on_split(net.eval(), 2, 2, False) is None
    with pytest.raises(UserError, match=r"trainer.sync_batchnorm=true does not know 0, a OwnNorm: leave it out"):
        SyncedBatchNorm().apply(nn.Sequential(OwnNorm(4)))


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Begins a training step by hand."""

    def begin(number: int = 0, places: range = range(64)) -> None:
        step = randomness._Step((1, 2, number), [places], True)
        monkeypatch.setattr(randomness, "_step", step)

    begin()
    return begin


def sampled(layer: nn.Module, number: int = 1) -> nn.Module:
    layer.draws = Draws(number, "layer")  # type: ignore[assignment]
    layer.__class__ = SAMPLE_LAYERS[type(layer)]
    return layer


def test_masks_have_the_right_share_and_are_uncorrelated(begin: Callable[..., None]) -> None:
    first, second, x = sampled(nn.Dropout(0.3)), sampled(nn.Dropout(0.3), 2), torch.ones(64, 2000)
    masks = [first(x), first(x), second(x)]
    begin(1)
    masks = [(mask != 0).double() for mask in [*masks, first(x)]]
    for mask in masks:
        assert mask.mean().item() == pytest.approx(0.7, abs=0.005)
        for axis in (0, 1):  # what independent draws would have: 0.21 / n
            assert mask.mean(axis).var().item() * mask.shape[axis] == pytest.approx(0.21, rel=0.5 if axis else 0.1)
    rows = torch.cat(masks) - 0.7
    pairs = (rows @ rows.T / 2000 / 0.21).fill_diagonal_(0)  # of all samples, in all calls, layers and steps
    assert pairs.abs().max() < 0.13  # 5.8 deviations of 32,640 pairs
    shifted = rows[:, 1:] * rows[:, :-1]
    assert abs(shifted.mean().item()) < 0.002


@pytest.mark.parametrize("kind", [*SAMPLE_LAYERS][:-1])
def test_layer_of_each_kind_drops_the_same_in_each_precision_as_torch_would(
    kind: Any, begin: Callable[..., None]
) -> None:
    shape = {nn.Dropout2d: (64, 3, 5, 5), nn.Dropout3d: (64, 3, 5, 5, 5)}.get(kind, (64, 3, 5))
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        layer = sampled(kind(0.3))
        begin()
        found.append(layer(torch.full(shape, 2.0, dtype=dtype)))
    assert all(torch.equal(found[0] > 1, other > 1) for other in found)
    expected = kind(0.3)(torch.full(shape, 2.0, dtype=torch.float64))
    assert found[1].unique().tolist() == pytest.approx(expected.unique().tolist(), abs=1e-12)
    per_channel = found[1].flatten(2).var(2).max().item()
    assert (per_channel == 0) == (expected.flatten(2).var(2).max().item() == 0), "whole channels"
    x = torch.full(shape, 2.0)
    begin()
    assert kind(0.3, inplace=True).inplace
    in_place = sampled(kind(0.3, inplace=True))(x)
    assert in_place is x
    assert torch.equal(x, found[0])


def test_sample_is_known_by_its_place_and_its_rows_are_neighbours(begin: Callable[..., None]) -> None:
    layer, x = sampled(nn.Dropout(0.3)), torch.ones(64, 6)
    whole = layer(x)
    begin(places=range(1, 64, 3))
    assert torch.equal(layer(x[1::3]), whole[1::3])
    begin()
    rows = layer(x.reshape(-1, 2)).view(-1, 6)
    begin(places=range(1, 64, 3))
    assert torch.equal(layer(x[1::3].reshape(-1, 2)).view(-1, 6), rows[1::3]), "three rows for each sample"
    torch.testing.assert_close(layer.eval()(x), x, rtol=0, atol=0)


def test_padding_changes_no_mask(begin: Callable[..., None]) -> None:
    """Each part of a batch is padded to its own longest sample."""
    layer, weights = sampled(nn.Dropout(0.3)), torch.ones(64, 2, 9, 9)  # (B, heads, T, T)
    begin()
    short = layer(weights[:, :, :5, :5])
    begin()
    long = layer(weights)
    assert torch.equal(long[:, :, :5, :5], short)
    begin()
    assert torch.equal(layer(weights[:, :, :5, :5]), short), "after a longer one"


def test_activation_checkpointing_repeats_each_call_of_a_layer(begin: Callable[..., None]) -> None:
    layer, x = sampled(nn.Dropout(0.3)), torch.ones(64, 6, requires_grad=True)

    def gradient(num_calls: int, **options: Any) -> Tensor:
        begin()
        outputs = [
            checkpoint(lambda x: layer(x).square(), x, use_reentrant=False, **options) * number
            for number in range(1, num_calls + 1)
        ]
        return torch.autograd.grad(sum(outputs).sum(), x)[0]  # type: ignore[union-attr]

    begin()
    once = 2 * layer(x).square()
    twice = once + 4 * layer(x).square()
    torch.testing.assert_close(gradient(2), twice)
    assert torch.equal(gradient(1, preserve_rng_state=False), once), "the only call is known without torch's generator"
    with pytest.raises(RuntimeError, match="layer is called 2 times, and which is repeated is unknown"):
        gradient(2, preserve_rng_state=False)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False, "kdim": 6, "vdim": 6}, {"add_bias_kv": True, "add_zero_attn": True}]
)
@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_is_that_of_torch_but_for_what_is_dropped(
    batch_first: bool, options: Any, is_masked: bool, begin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.MultiheadAttention(8, 2, dropout=0.25, batch_first=batch_first, dtype=torch.float64, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    query, key = torch.randn(64, 5, 8).double(), torch.randn(64, 7, options.get("kdim", 8)).double()
    inputs = [x if batch_first else x.transpose(0, 1) for x in (query, key, key)]
    masks: Any = {}
    if is_masked:
        masks = {"attn_mask": torch.ones(5, 7).triu(1).bool(), "key_padding_mask": torch.arange(7).expand(64, 7) > 5}
    expected = layer.eval()(*inputs, **masks)
    sampled(layer.train())
    plain = randomness.SampleLayer.mask
    monkeypatch.setattr(randomness.SampleLayer, "mask", lambda self, x, shape, p: torch.full_like(x, 1 - p))
    for average in (True, False):
        found = layer(*inputs, average_attn_weights=average, **masks)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1] if average else found[1].mean(1), expected[1], rtol=0, atol=1e-12)
    monkeypatch.setattr(randomness.SampleLayer, "mask", plain)
    output, weights = layer(*inputs, need_weights=False, **masks)
    assert weights is None
    assert not torch.allclose(output, expected[0])


def test_uniform_numbers_are_the_same_in_each_precision_and_differ_in_each_call(begin: Callable[..., None]) -> None:
    single = sample_uniform(torch.ones(64, 2), 1000)
    other = sample_uniform(torch.ones(64, 2), 1000)
    begin()
    double = sample_uniform(torch.ones(64, 2).double(), 1000)
    assert torch.equal(single.double(), double)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert 0 <= double.min() < 1e-4 < 1 - 1e-4 < double.max() < 1
    assert double.mean().item() == pytest.approx(0.5, abs=0.005)
    assert double.var().item() == pytest.approx(1 / 12, abs=0.001)
    assert torch.corrcoef(torch.stack([single.flatten(), other.flatten()]))[0, 1].abs() < 0.02


class Net(pl.LightningModule):
    """Draws as `draw` does."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.dropout, self.last = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.dropout(self.draw(self.first(x))))
        return output

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: pl.LightningModule, num_steps: int = 1, ckpt_path: Any = None, **options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    settings: Any = {"max_epochs": 2, "num_sanity_val_steps": 0, **quiet, "strategy": one_device(), **options}
    trainer = pl.Trainer(
        accelerator="cpu", accumulate_grad_batches=num_steps, use_distributed_sampler=False, **settings
    )
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x), batch_size=8)
    trainer.fit(module, DataLoader(TensorDataset(x), batch_size=8, shuffle=True), loader, ckpt_path=ckpt_path)
    return trainer


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == randomness.__name__]


@pytest.mark.parametrize(
    ("draw", "is_seen"),
    [
        (nn.functional.dropout, False),
        (lambda x: x + torch.randn_like(x), False),
        (lambda x: x + np.random.rand(), False),
        (lambda x: x + sample_uniform(x, 8), True),
    ],
)
def test_steps_that_draw_by_themselves_are_reported_where_batches_are_split(
    draw: Any, is_seen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fit(Net(draw))
    assert not said(caplog)
    fit(Net(draw), num_steps=2)
    remedy = "take nn.Dropout in place of F.dropout, and engine.sample_uniform in place of torch.rand."
    sentence = f"draws random numbers by itself, so the result depends on how a batch is split: {remedy}"
    expected = [f"warning     {step} {sentence}" for step in ("training_step", "validation_step")]
    assert said(caplog) == ([] if is_seen else expected)


class LaterDraws(Net):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + random.random() if self.current_epoch else 1)


class EvaluationDraws(Net):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0] + torch.rand(4))


class TransferDraws(Net):
    """As with Kornia, whose changes are made on the device."""

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        return [batch[0] + torch.rand_like(batch[0])]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (LaterDraws, "training_step draws random numbers by itself"),
        (EvaluationDraws, "validation_step draws random numbers by itself"),
        (TransferDraws, "on_after_batch_transfer draws random numbers by itself, so the result"),
    ],
)
def test_draws_at_any_place_and_in_any_epoch_are_reported_once(
    kind: type[Net], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    fit(kind(nn.Identity()), num_steps=2, max_epochs=4)
    assert [text in line for line in said(caplog)] == [True]


@pytest.mark.parametrize(("shape", "is_clear"), [((-1, 4), True), ((-1, 16), False), ((2, -1, 4), False)])
def test_layer_whose_rows_are_not_those_of_samples_is_reported_once(
    shape: tuple[int, ...], is_clear: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Reshaped(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)[: len(x) // 2 * 2]
            output: Tensor = self.dropout(hidden.reshape(shape)).reshape(hidden.shape)
            return self.last(output)  # type: ignore[no-any-return]

    fit(Reshaped(nn.Identity()), num_steps=2)
    assert [line.split(" takes ")[0] for line in said(caplog)] == ([] if is_clear else ["warning     dropout"])


def test_module_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    kinds = []

    class Watched(Net):
        is_off = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            kinds.append(type(self.dropout))
            assert list(self.state_dict()) == list(Net(nn.Identity()).state_dict())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            assert self.is_off or randomness._step is not None

        def on_validation_epoch_end(self) -> None:
            assert randomness._step is None

    module = Watched(nn.Identity())
    fit(module)
    assert kinds == [SAMPLE_LAYERS[nn.Dropout]] * 6
    assert type(module.dropout) is nn.Dropout
    assert vars(module.dropout).keys() == vars(nn.Dropout()).keys()
    off = one_device()
    off.sample_dropout, module.is_off = False, True
    fit(module, strategy=off)
    assert kinds[6:] == [nn.Dropout] * 6
    with pytest.raises(ZeroDivisionError):
        fit(Watched(lambda x: x / (1 // 0)))  # type: ignore[operator]
    assert randomness._step is None


def test_masks_differ_by_seed_epoch_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    for seed in ("0", "1", "1"):
        module = Net(nn.Identity())
        module.dropout.register_forward_hook(lambda layer, x, y: masks.append(y[:4] != 0) if layer.training else None)
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        fit(module)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 12
    assert all(map(torch.equal, masks[6:12], masks[12:]))


def test_run_that_is_continued_within_an_epoch_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole, continued = Net(nn.Identity()), Net(nn.Identity())

    def save(trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 4 and trainer.lightning_module is whole:
            trainer.save_checkpoint(tmp_path / "begun.ckpt")

    fit(whole, callbacks=[LambdaCallback(on_train_batch_end=save)])
    torch.manual_seed(5)
    steps = []
    continued.register_forward_hook(lambda *_: steps.append(continued.global_step) if continued.training else None)
    fit(continued, ckpt_path=tmp_path / "begun.ckpt")
    assert steps == [4, 5]
    torch.testing.assert_close(continued.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_compiled_network_draws_the_same() -> None:
    plain, compiled = (Net(lambda x: x + sample_uniform(x, 8)) for _ in range(2))
    compiled.forward = torch.compile(compiled.forward, backend="aot_eager", fullgraph=True)  # type: ignore[method-assign]
    for module in (plain, compiled):
        fit(module)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=0, atol=0)
