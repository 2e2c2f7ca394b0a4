"""Options that act on any LightningModule: scaled learning rates, warm-up, plateaus and compilation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from digits import Digits, optimization
from lightning.pytorch.callbacks import ModelCheckpoint
from test_models import make_classifier, make_trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from {{ cookiecutter.package_name }}.engine.errors import UserError


class Plain(pl.LightningModule):
    """Has a `configure_optimizers` of its own, and a validation loss that never falls."""

    def __init__(self, configure: Callable[["Plain"], Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(64, 4), nn.Linear(4, 10)
        self.configure = configure

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.second(self.first(batch[0].flatten(1).float() / 255))
        return nn.functional.cross_entropy(logits, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 1.0, batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        return self.configure(self)


class Rates(pl.Callback):
    """Notes the learning rates of each step, of all groups of all optimizers."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.found.append(rates[0] if len(rates) == 1 else rates)


def fitted(module: pl.LightningModule, *callbacks: pl.Callback, max_epochs: int = 3, **options: Any) -> list[Any]:
    """The learning rates of each step; an epoch has four."""
    rates = Rates()
    make_trainer(max_epochs=max_epochs, callbacks=[*callbacks, rates], **options).fit(module, datamodule=Digits(300))
    return rates.found


def sgd(module: Plain, lr: float = 0.1) -> Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr)


def test_warm_up_rises_to_the_learning_rate_step_by_step() -> None:
    model = make_classifier(Digits().spec, scheduler=partial(ExponentialLR, gamma=0.5))
    rates = fitted(model, optimization(warmup_steps=4))
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, *[0.05] * 4, *[0.025] * 4])


def scheduled(scheduler: Callable[[Optimizer], Any], interval: str = "step") -> Plain:
    def configure(module: Plain) -> Any:
        optimizer = sgd(module)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": interval}}

    return Plain(configure)


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(
    "scheduler",
    [partial(StepLR, step_size=2), partial(ExponentialLR, gamma=0.9), partial(CosineAnnealingLR, T_max=20)],
)
def test_warm_up_is_a_factor_on_top_of_a_schedule(scheduler: Any, interval: str) -> None:
    alone = fitted(scheduled(scheduler, interval))
    warm = fitted(scheduled(scheduler, interval), optimization(warmup_steps=6))
    factors = [min(1.0, (step + 1) / 7) for step in range(12)]
    assert warm == pytest.approx([rate * factor for rate, factor in zip(alone, factors, strict=True)])


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(OneCycleLR, max_lr=0.1, total_steps=12),
        partial(CyclicLR, base_lr=0.01, max_lr=0.1),
        partial(LambdaLR, lr_lambda=lambda step: 1.0),
    ],
)
def test_warm_up_of_a_schedule_that_sets_the_rate_is_refused(scheduler: Any) -> None:
    fitted(scheduled(scheduler), optimization(), max_epochs=1)
    name = scheduler.func.__name__
    with pytest.raises(UserError, match=f"warmup_steps cannot go with {name}, which sets the learning rate regardless"):
        fitted(scheduled(scheduler), optimization(warmup_steps=4))


class Manual(Plain):
    def __init__(self, configure: Callable[[Plain], Any]) -> None:
        super().__init__(configure)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()


def test_warm_up_of_manual_optimisation_is_refused() -> None:
    module = Manual(lambda module: [torch.optim.SGD(part.parameters(), lr=0.1) for part in module.children()])
    with pytest.raises(UserError, match="warmup_steps cannot go with manual optimisation"):
        fitted(module, optimization(warmup_steps=4))


def test_scaled_learning_rate_reaches_any_optimizer_and_its_schedule() -> None:
    """Groups with rates of their own, several optimizers, and a schedule that reads the rate as it is built."""

    def groups(module: Plain) -> Any:
        optimizer = torch.optim.AdamW(
            [{"params": module.first.parameters(), "lr": 0.01}, {"params": module.second.parameters()}], lr=0.1
        )
        return [optimizer], [ExponentialLR(optimizer, gamma=0.5)]

    def several(module: Plain) -> Any:
        return [
            torch.optim.Adagrad(module.first.parameters(), lr=0.01),
            torch.optim.SGD(list(module.second.named_parameters()), lr=0.1),
        ]

    scaled = fitted(Plain(groups), optimization(lr_factor=4.0), max_epochs=2)
    assert scaled == [pytest.approx([0.04, 0.4])] * 4 + [pytest.approx([0.02, 0.2])] * 4
    assert fitted(Manual(several), optimization(lr_factor=4.0), max_epochs=1) == [pytest.approx([0.04, 0.4])] * 4
    assert fitted(Plain(groups), optimization(), max_epochs=1) == [[0.01, 0.1]] * 4


def test_scaled_rate_has_the_steps_of_an_optimizer_that_was_given_it() -> None:
    given, scaled = Plain(partial(sgd, lr=0.2)), Plain(partial(sgd, lr=0.05))
    fitted(given, optimization(), max_epochs=1)
    fitted(scaled, optimization(lr_factor=4.0), max_epochs=1)
    for one, other in zip(given.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(one, other)


def test_schedule_that_ignores_a_scaled_learning_rate_is_refused() -> None:
    one_cycle = partial(OneCycleLR, max_lr=0.1, total_steps=12)
    with pytest.raises(UserError, match=r"model.scheduler sets learning rates of its own, over .* and lr_scaling="):
        fitted(scheduled(one_cycle), optimization(lr_scaling="linear", lr_factor=4.0))


def test_value_that_an_optimizer_or_a_schedule_refuses_is_a_sentence() -> None:
    for module, reason in (
        (Plain(partial(sgd, lr=-1.0)), "Invalid learning rate: -1.0"),
        (scheduled(partial(LambdaLR, lr_lambda=[float, float])), "Expected 1 lr_lambdas, but got 2"),
    ):
        with pytest.raises(UserError, match=f"^model.optimizer or model.scheduler refuses a value: .*{reason}"):
            fitted(module, optimization())


def on_plateau(module: Plain, **options: Any) -> Any:
    optimizer = sgd(module)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss", **options}}


@pytest.mark.parametrize(("frequency", "rates"), [(1, [0.1, 0.1, 0.05, 0.025]), (2, [0.1, 0.1, 0.1, 0.1])])
def test_rate_falls_on_a_plateau_as_without_the_callback(frequency: int, rates: list[float]) -> None:
    configure = partial(on_plateau, frequency=frequency)
    found = fitted(Plain(configure), optimization(), max_epochs=4)
    assert found == pytest.approx([rate for rate in rates for _ in range(4)])
    assert found == fitted(Plain(configure), max_epochs=4)


def test_rate_falls_on_a_plateau_in_a_run_that_goes_on_as_in_one_that_was_not_ended(tmp_path: Path) -> None:
    """The checkpoint of an epoch holds the step of the schedule that belongs to it."""

    def kept() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{epoch}", monitor="val/loss", save_top_k=-1)

    options = {"max_epochs": 4, "enable_checkpointing": True}
    whole = fitted(Plain(on_plateau), optimization(), kept(), **options)
    for ended in (1, 2, 3):
        rates = Rates()
        trainer = make_trainer(callbacks=[optimization(), kept(), rates], **options)
        trainer.fit(Plain(on_plateau), datamodule=Digits(300), ckpt_path=str(tmp_path / f"epoch={ended - 1}.ckpt"))
        assert rates.found == pytest.approx(whole[4 * ended :]), ended


def test_compilation_leaves_the_names_of_the_weights_as_they_are() -> None:
    """Every part that has weights is compiled, and no metric."""
    model, names = make_classifier(Digits().spec), list(make_classifier(Digits().spec).state_dict())
    compiled: list[str] = []
    for name, child in model.named_children():
        child.compile = partial(compiled.append, name)  # type: ignore[method-assign]
    fitted(model, optimization(compile=True), max_epochs=1)
    assert compiled == ["net"]
    assert list(model.state_dict()) == names
    compiled.clear()
    fitted(model, optimization(), max_epochs=1)
    assert compiled == []
