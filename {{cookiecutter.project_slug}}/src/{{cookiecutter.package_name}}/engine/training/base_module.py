"""What all tasks share: a network that is trained and evaluated, every sample once."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from ..data.loader import Batch
from ..errors import UserError
from ..spec import DataSpec
from .epoch_sums import Totals
from .layers import Normalize
from .parameter_groups import freeze_named, grouped, hold_frozen
from .schedules import after_validation, schedules


class BaseModule(pl.LightningModule):
    """Trains `net(spec)`, from raw input `(B, *spec.input_shape)` to outputs `(B, K)`.

    Logs `loss` and `figure` of training, and `loss` and the scores under `val/` and `test/`, once an epoch. Every
    sample counts once, whatever the number of processes, so the figures are those of one process.

    `weights` names the file that `tuning.begin` starts a training from. It is not read here: what was trained is built
    again without it.
    """

    figure: str  # what is logged of training beside the loss: the mean of `figure_sum`, or what `finished` makes of it
    val_scores: MetricCollection
    test_scores: MetricCollection
    test_counts: Metric  # of test samples, for a picture

    def __init__(
        self,
        spec: DataSpec,
        net: Callable[[DataSpec], nn.Module],
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        warmup_steps: int,
        compile: bool,
        channels_last: bool,
        weights: str | None,
        pretrained_lr_factor: float,
        freeze: str | list[str] | None,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise UserError(f"model.warmup_steps={warmup_steps} is out of range: give 0 (none) or more.")
        if not 0 < pretrained_lr_factor <= 1:
            raise UserError(
                f"model.pretrained_lr_factor={pretrained_lr_factor} is out of range: give more than 0, and at most 1."
            )
        self.spec = spec
        self.make_net = net
        self.net = nn.Sequential(Normalize(spec), net(spec))
        if freeze is not None:
            freeze_named(self, freeze)
        self.freezes = freeze is not None  # a network that freezes some of its own looks after them itself
        self.weights = weights
        self.kept: frozenset[str] = frozenset()  # names of the parameters that were taken from `weights`
        self.pretrained_lr_factor = pretrained_lr_factor
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.warmup_steps = warmup_steps
        self.compiled = compile
        self.channels_last = channels_last
        self.counts: Tensor | None = None  # what `test_counts` came to; there after a test
        self.counts_all = True  # else batches are left out whose loss is not finite
        self._totals: dict[str, Totals] = {}
        self._resumed: Totals | None = None  # of an epoch that goes on

    def batch_loss(self, outputs: Tensor, y: Tensor, training: bool) -> Tensor:
        """The mean over the samples; training alone may smooth."""
        raise NotImplementedError

    def figure_sum(self, outputs: Tensor, y: Tensor) -> Tensor:
        """A sum over the samples: of whole numbers, or of floats."""
        raise NotImplementedError

    def finished(self, mean: Tensor) -> Tensor:
        return mean

    def read_scores(self, scores: MetricCollection) -> dict[str, Tensor]:
        figures: dict[str, Tensor] = scores.compute()
        return figures

    def compared(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the scores compare."""
        return outputs, y

    def test_figures(self, first: Tensor, y: Tensor) -> dict[str, float]:
        """The scores by their names, for the exported first output `(N, K)` of all test samples; fills `counts` too."""
        self.test_scores.reset()
        compared = self.compared(first, y)
        self.test_scores.update(*compared)
        self.counts = self.test_counts(*compared)
        return {name: value.item() for name, value in self.read_scores(self.test_scores).items()}

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        return outputs

    def configure_model(self) -> None:
        if self.channels_last:  # before ddp lays out its buckets like the weights
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]

    def on_fit_start(self) -> None:
        if self.compiled:  # in place, so the names in a checkpoint stay; `evaluate` and `export` run the plain network
            self.net.compile()

    def on_train_start(self) -> None:
        self._totals = {"train": self._resumed} if self._resumed and self.global_rank == 0 else {}
        self._resumed = None
        self.hold_frozen()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["totals"] = self._totals.get("train", self._no_samples()).over_ranks(self.trainer.strategy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        totals = checkpoint.get("totals")
        self._resumed = Totals.of_ranks(totals, self.device) if totals else None

    def hold_frozen(self) -> None:
        """After all that sets modules to train, or puts others in their place, as `sync_batchnorm`."""
        if self.freezes:
            hold_frozen(self.net)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        outputs = self(x)
        loss = self.batch_loss(outputs, y, training=True)
        self._count("train", outputs, y, loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, self.test_scores, self.test_counts)

    def _evaluate(self, split: str, batch: Batch, *metrics: MetricCollection | Metric) -> None:
        x, y = batch
        if len(y) == 0:  # more processes than samples in this batch
            return
        outputs = self(x)
        self._count(split, outputs, y, self.batch_loss(outputs, y, training=False))
        for metric in metrics:
            metric.update(*self.compared(outputs, y))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # Not in on_train_epoch_end: that comes after the progress bar has shown the epoch's figures.
        if self.trainer.is_last_batch:
            loss, mean = self._means("train")
            self._log({"train/loss": loss, f"train/{self.figure}": self.finished(mean)})

    def on_validation_epoch_end(self) -> None:
        loss = self._means("val")[0]
        self._log({"val/loss": loss, **self.read_scores(self.val_scores)})
        self.val_scores.reset()
        after_validation(self.trainer, loss.item())

    def on_test_epoch_end(self) -> None:
        self._log({"test/loss": self._means("test")[0], **self.read_scores(self.test_scores)})
        self.test_scores.reset()
        self.counts = self.test_counts.compute()  # on all ranks: it waits for their counts
        self.test_counts.reset()

    def _log(self, figures: dict[str, Tensor]) -> None:
        for name, value in figures.items():
            shown = name.endswith(("loss", self.figure))  # the bar has no room for all
            # All ranks hold the same figures already; sync_dist only tells Lightning so.
            self.log(name, value, prog_bar=shown, on_step=False, on_epoch=True, sync_dist=True)

    def _count(self, split: str, outputs: Tensor, y: Tensor, loss: Tensor) -> None:
        if not self.counts_all and split == "train" and not torch.isfinite(loss):
            return
        if split not in self._totals:
            self._totals[split] = self._no_samples()
        self._totals[split].add(loss, self.figure_sum(outputs.detach(), y), len(y))

    def _means(self, split: str) -> tuple[Tensor, Tensor]:
        """Of loss and figure_sum over the samples of all ranks since the last call."""
        return (self._totals.pop(split, None) or self._no_samples()).means(self.trainer.strategy)

    def _no_samples(self) -> Totals:
        return Totals.of_no_samples(self.dtype, self.device)  # type: ignore[arg-type]

    def build_optimizer(self) -> Optimizer:
        if not self.kept:
            return self.make_optimizer(self.parameters())
        return grouped(self.make_optimizer, self.named_parameters(), self.kept, self.pretrained_lr_factor)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.build_optimizer()
        return [optimizer], schedules(optimizer, self.make_scheduler, self.warmup_steps, self.pretrained_lr_factor)
