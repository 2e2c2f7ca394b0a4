"""Callbacks: the micro-batch finder, what checkpoints hold of an epoch, its figures and their pictures."""

import random
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from digits import Digits, linear, one_device
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import MaxMetric, MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
    MulticlassROC,
)

from {{ cookiecutter.package_name }}.engine.distributed.plan import BatchSplit
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training.build import STEP_HOOKS, leave_out_empty_hooks
from {{ cookiecutter.package_name }}.engine.training.callbacks.checkpoint_contents import CheckpointContents
from {{ cookiecutter.package_name }}.engine.training.callbacks.epoch_values import EpochValues
from {{ cookiecutter.package_name }}.engine.training.callbacks.micro_batch_finder import MicroBatchFinder
from {{ cookiecutter.package_name }}.engine.training.callbacks.monitoring import EpochLine
from {{ cookiecutter.package_name }}.engine.training.plots import MetricPlots
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
    split = BatchSplit.of({"batch_size": 64, "micro_batch_size": micro_batch_size}, 1)
    model = Classifier(datamodule.spec, lambda spec: SmallDevice(spec, room), torch.optim.SGD)
    callbacks = [MicroBatchFinder(split)] if micro_batch_size == "auto" else []
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=one_device(),
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
    assert str(BatchSplit(64, 1, 64 // fitting)) in caplog.text
    expected, right = fit(room, fitting)
    assert trainer.callback_metrics == right.callback_metrics, "what was tried is counted in no figure"
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


class Logging(Classifier):
    """Logs the figures of an epoch in every way that Lightning has."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, linear, partial(torch.optim.SGD, lr=0.1))
        self.mean = MeanMetric()
        self.scores = MetricCollection({"mean": MeanMetric(), "most": MaxMetric()}, prefix="scores/")
        classes = {"f1": MulticlassF1Score(10), "recall": MulticlassRecall(10)}  # with states that they share
        self.at_end = MetricCollection(classes, prefix="at_end/")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for value, name in ((loss, "mean"), (len(batch[1]), "sum"), (loss, "max"), (loss, "min")):
            self.log(name, value, on_step=False, on_epoch=True, reduce_fx=name)
        self.mean.update(loss)
        self.log("metric", self.mean, on_step=False, on_epoch=True)
        self.scores.update(loss)
        self.log_dict(self.scores, on_step=False, on_epoch=True)
        self.log("both", loss, on_step=True, on_epoch=True)
        self.at_end.update(self(batch[0]).detach(), batch[1])
        return loss


class Ended(pl.Callback):
    """Ends the run after a number of steps, as a signal does."""

    def __init__(self, num_steps: int | None) -> None:
        self.num_steps = num_steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.num_steps:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/middle.ckpt")
            raise InterruptedError


def trained_until(
    folder: Path, num_steps: int | None, ckpt_path: Path | None = None, callbacks: Sequence[pl.Callback] = ()
) -> list[dict[str, float]]:
    """The figures of each epoch; one has 20 steps, with a validation after the tenth one too."""
    pl.seed_everything(3, verbose=False)
    figures: list[dict[str, float]] = []

    class Figures(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            found = {**trainer.callback_metrics, **pl_module.at_end.compute()}
            figures.append({name: value.item() for name, value in found.items()})
            pl_module.at_end.reset()

    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=one_device(),
        default_root_dir=folder,
        max_epochs=2,
        val_check_interval=10,
        callbacks=[*callbacks, CheckpointContents({}), Ended(num_steps), Figures()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    datamodule = Digits(batch_size=62)
    with suppress(InterruptedError) if num_steps else nullcontext():
        trainer.fit(Logging(datamodule.spec), datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return figures


@pytest.mark.parametrize("num_steps", [7, 10, 13, 25])
def test_figures_of_an_epoch_that_goes_on_are_those_of_the_whole_epoch(num_steps: int, tmp_path: Path) -> None:
    whole = trained_until(tmp_path, None)
    assert {"mean", "sum", "max", "min", "metric", "scores/most", "both_epoch", "train/acc", "val/loss"} <= {*whole[0]}
    before = trained_until(tmp_path, num_steps)
    after = trained_until(tmp_path, None, tmp_path / "middle.ckpt")
    for found, expected in zip([*before, *after], whole, strict=True):
        assert found == pytest.approx(expected, rel=1e-6)


def test_quicker_logging_gives_the_figures_of_lightning(tmp_path: Path) -> None:
    assert trained_until(tmp_path, None, callbacks=[EpochValues()]) == trained_until(tmp_path, None)


def test_figures_of_an_epoch_whose_last_step_was_saved_do_not_count_in_the_next_one(tmp_path: Path) -> None:
    """Lightning goes on with the next epoch, and does not end the last one."""
    _, second = trained_until(tmp_path, None)
    assert trained_until(tmp_path, 20) == []
    (found,) = trained_until(tmp_path, None, tmp_path / "middle.ckpt")
    assert found == pytest.approx(second, rel=1e-6)


def test_values_are_synchronised_in_one_order_whatever_a_rank_logs_first() -> None:
    """Lightning synchronises one value after the other, and would pair those of different names."""

    class Orders(Logging):
        def on_train_epoch_end(self) -> None:
            orders.append([*self.trainer._results])

    orders: list[list[str]] = []
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=one_device(),
        max_epochs=1,
        limit_train_batches=2,
        callbacks=[EpochValues()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    datamodule = Digits(batch_size=62)
    trainer.fit(Orders(datamodule.spec), datamodule=datamodule)
    assert orders == [sorted(orders[0])]
    assert len(orders[0]) > 5


def test_figure_that_only_some_processes_log_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for each other's values for ever."""

    def gathered(found: list[list[str]], own: list[str]) -> None:
        found[:] = [own, [*own, "training_step.train/rare"]]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    result = SimpleNamespace(meta=SimpleNamespace(on_epoch=True, sync=SimpleNamespace(rank_zero_only=False)))
    other = SimpleNamespace(root_device="cpu", reduce=lambda checksum, reduce_op: checksum * 2 + 1)
    trainer: Any = SimpleNamespace(world_size=2, _results={"training_step.train/loss": result}, strategy=other)
    with pytest.raises(UserError, match=r"'train/rare' was logged by some processes only: log it in each step"):
        EpochValues().on_train_epoch_end(trainer, pl.LightningModule())


def test_hooks_that_do_nothing_are_left_out_and_others_are_not() -> None:
    ended = Ended(None)
    leave_out_empty_hooks([ended, ModelCheckpoint()])
    assert callable(ended.on_train_batch_end)
    assert [hook for hook in STEP_HOOKS if getattr(ended, hook) is not None] == ["on_train_batch_end"]
    assert {"on_before_zero_grad", "on_after_backward", "on_train_batch_start"} <= {*STEP_HOOKS}


class Elsewhere(Classifier):
    """Logs `val_loss` where `val/loss` is expected, or nothing."""

    def __init__(self, spec: DataSpec, name: str | None) -> None:
        super().__init__(spec, linear, partial(torch.optim.SGD, lr=0.1))
        self.name, self.losses = name, iter((3.0, 1.0, 2.0, 3.0, 4.0))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.loss_now = next(self.losses)
        if self.name is not None:
            self.log(self.name, self.loss_now)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


@pytest.mark.parametrize(
    ("name", "best", "num_epochs"), [("val/loss", 1, 4), ("val_loss", 1, 4), ("other", 4, 5), (None, 4, 5)]
)
def test_figure_that_is_monitored_is_found_under_a_similar_name(
    name: str | None, best: int, num_epochs: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datamodule = Digits(batch_size=300)
    kept = ModelCheckpoint(tmp_path, monitor="val/loss", filename="{epoch}")
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=one_device(),
        max_epochs=5,
        num_sanity_val_steps=0,
        callbacks=[EpochValues(), kept, EarlyStopping("val/loss", patience=2)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(Elsewhere(datamodule.spec, name), datamodule=datamodule)
    assert (Path(kept.best_model_path).stem, trainer.current_epoch) == (f"epoch={best}", num_epochs)
    is_found = name in ("val/loss", "val_loss")
    assert ("and not val/loss, which is monitored: the best checkpoint is the last one" in caplog.text) != is_found
    assert caplog.text.count("warning     ") == (not is_found), "it is said once"


class Pictured(Classifier):
    """Has metrics whose value is more than a number, or none, in a list and in a collection."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, linear, torch.optim.SGD)
        self.of_each = nn.ModuleList([MulticlassAccuracy(10, average=None)])
        self.curves = MetricCollection({"roc": MulticlassROC(10, thresholds=5)})
        self.unused = MulticlassConfusionMatrix(10)
        self.number = MulticlassAccuracy(10)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        for metric in (self.of_each[0], self.curves, self.number):
            metric.update(self(batch[0]).softmax(1), batch[1])


def test_metrics_of_a_test_that_are_no_numbers_are_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datamodule = Digits()
    model, shown = Pictured(datamodule.spec), []
    plot = MulticlassConfusionMatrix.plot

    @wraps(plot)
    def noted(self: Any, value: Any, **options: Any) -> Any:
        shown.append((value.sum().item(), options["labels"]))
        return plot(self, value, **options)

    monkeypatch.setattr(MulticlassConfusionMatrix, "plot", noted)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=one_device(),
        callbacks=[MetricPlots()],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
    )
    for _ in range(2):
        trainer.test(model, datamodule=datamodule, verbose=False)
        assert sorted(path.name for path in tmp_path.glob("*.png")) == [
            "confusion_matrix.png",
            "curves.roc.png",
            "of_each.0.png",
        ]
    assert shown == [(360, [*"0123456789"])] * 2, "each test counts anew"


def test_metric_that_cannot_be_plotted_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Unplottable(MulticlassConfusionMatrix):
        def plot(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no axes")

    datamodule = Digits()
    model = Pictured(datamodule.spec)
    model.confusion_matrix = Unplottable(10)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=one_device(),
        callbacks=[MetricPlots()],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.test(model, datamodule=datamodule, verbose=False)
    assert "the metric confusion_matrix cannot be plotted: no axes" in caplog.text
    assert not (tmp_path / "confusion_matrix.png").exists()
    assert (tmp_path / "of_each.0.png").is_file()


def test_line_of_an_epoch_has_columns_and_marks_the_best() -> None:
    line, written, callback = EpochLine(), [], SimpleNamespace(monitor="val/loss", mode="min", best_model_score=None)
    for epoch, figures in enumerate(
        ({"train/loss": 2.0, "val/acc": 0.5, "val/loss": 1.0}, {"val/loss": 10.0, "lr": 1e-05}, {"val/loss": 0.25})
    ):
        trainer: Any = SimpleNamespace(
            callback_metrics=figures, checkpoint_callback=callback, current_epoch=epoch, max_epochs=10
        )
        line.start(trainer)
        written.append(line.write(trainer))
        callback.best_model_score = min(figures["val/loss"], callback.best_model_score or 100)
    assert [text[:11] for text in written] == ["epoch  1/10", "epoch  2/10", "epoch  3/10"]
    assert ["best" in text for text in written] == [True, False, True]
    assert [text.index("val/loss") for text in written] == [written[0].index("val/loss")] * 3
    assert written[0].split()[-6:] == ["val/loss", "1", "val/acc", "0.5", "train/loss", "2"]
    assert written[1].endswith("lr 1e-05")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_figure_that_is_not_a_number_is_never_the_best(mode: str) -> None:
    line, marks = EpochLine(), []
    for best, figure in ((None, float("nan")), (None, 2.0), (2.0, 2.0), (2.0, 1.0), (2.0, 3.0), (2.0, float("nan"))):
        callback = SimpleNamespace(monitor="val/acc", mode=mode, best_model_score=best)
        trainer: Any = SimpleNamespace(
            callback_metrics={"val/acc": figure}, checkpoint_callback=callback, current_epoch=0, max_epochs=None
        )
        line.start(trainer)
        marks.append("best" in line.write(trainer))
    assert marks == [False, True, False, mode == "min", mode == "max", False]
