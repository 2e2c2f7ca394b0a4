"""One LightningModule for any network that turns a batch into logits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from ..data.samples import Batch
from ..data.spec import DataSpec
from ..hooks import METRICS
from ..refusal import Refusal
from .layers import Normalize


@dataclass
class Totals:
    """Sums over samples; the first two lie on the device, and are read from it once an epoch."""

    loss: Tensor
    correct: Tensor
    count: int = 0


class Classifier(pl.LightningModule):
    """Trains `net(spec)` with cross entropy: raw input `(B, *spec.input_shape)` to logits `(B, K)`.

    Logs `train/loss` and `train/acc`, and `loss`, `acc` and `f1` (macro) under `val/` and `test/`, once an epoch.
    Every sample counts once, whatever the number of processes, so the figures are those of one process.
    """

    def __init__(
        self,
        spec: DataSpec,
        net: Callable[[DataSpec], nn.Module],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        warmup_steps: int = 0,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise Refusal(f"model.warmup_steps={warmup_steps} is out of range: give 0 (none) or more.")
        if not 0 <= label_smoothing < 1:
            raise Refusal(f"model.label_smoothing={label_smoothing} is out of range: give 0 or more, and less than 1.")
        self.spec = spec
        self.net = nn.Sequential(Normalize(spec), net(spec))
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.label_smoothing = label_smoothing
        self.warmup_steps = warmup_steps
        self.compiled = compile
        self.channels_last = channels_last
        scores: dict[str, Metric | MetricCollection] = {
            "acc": MulticlassAccuracy(spec.num_classes, average="micro"),
            "f1": MulticlassF1Score(spec.num_classes, average="macro"),
        }
        self.val_scores = MetricCollection(scores, prefix="val/")
        self.test_scores = MetricCollection(scores, prefix="test/")
        self.test_confusion = MulticlassConfusionMatrix(spec.num_classes)
        self.confusion_matrix: Tensor | None = None  # (K, K), rows the true labels; there after a test
        self._totals: dict[str, Totals] = {}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def configure_model(self) -> None:
        if self.channels_last:  # before ddp lays out its buckets like the weights
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]

    def on_fit_start(self) -> None:
        if self.compiled:  # in place, so the names in a checkpoint stay; `evaluate` and `export` run the plain network
            self.net.compile()

    def on_train_start(self) -> None:
        self._totals.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        with self.trainer.profiler.profile(METRICS):  # type: ignore[attr-defined]
            self._count("train", logits, y, loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, self.test_scores, self.test_confusion)

    def _evaluate(self, split: str, batch: Batch, *metrics: MetricCollection | MulticlassConfusionMatrix) -> None:
        x, y = batch
        if len(y) == 0:  # more processes than samples in this batch
            return
        logits = self(x)
        self._count(split, logits, y, F.cross_entropy(logits, y))
        for metric in metrics:
            metric.update(logits, y)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # Not in on_train_epoch_end: that comes after the progress bar has shown the epoch's figures.
        if self.trainer.is_last_batch:
            loss, accuracy = self._means("train")
            self._log({"train/loss": loss, "train/acc": accuracy})

    def on_validation_epoch_end(self) -> None:
        self._log({"val/loss": self._means("val")[0], **self.val_scores.compute()})
        self.val_scores.reset()

    def on_test_epoch_end(self) -> None:
        self._log({"test/loss": self._means("test")[0], **self.test_scores.compute()})
        self.test_scores.reset()
        self.confusion_matrix = self.test_confusion.compute()  # on all ranks: it waits for their counts
        self.test_confusion.reset()

    def _log(self, figures: dict[str, Tensor]) -> None:
        for name, figure in figures.items():
            shown = not name.endswith("f1")  # the bar has no room for all
            # All ranks hold the same figures already; sync_dist only tells Lightning so.
            self.log(name, figure, prog_bar=shown, on_step=False, on_epoch=True, sync_dist=True)

    def _count(self, split: str, logits: Tensor, y: Tensor, loss: Tensor) -> None:
        """Adds to running sums on the device; a log call or `.item()` a step would cost more than a small network."""
        if split not in self._totals:
            self._totals[split] = self._no_samples()
        totals = self._totals[split]
        totals.loss.add_(loss.detach(), alpha=len(y))
        totals.correct += (logits.argmax(dim=1) == y).sum()
        totals.count += len(y)

    def _means(self, split: str) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy over the samples of all ranks since the last call."""
        totals = self._totals.pop(split, None) or self._no_samples()
        count = torch.full_like(totals.loss, totals.count)
        sums = torch.stack([totals.loss, totals.correct.to(count.dtype), count])
        loss, correct, count = self.trainer.strategy.reduce(sums, reduce_op="sum").unbind()
        return loss / count, correct / count

    def _no_samples(self) -> Totals:
        """Of one dtype on all ranks, those without a sample included."""
        dtype = torch.promote_types(self.dtype, torch.float32)  # type: ignore[arg-type]
        zero = torch.zeros((), device=self.device)
        return Totals(zero.to(dtype), zero.long())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.parameters())
        schedulers: list[Any] = []
        if self.make_scheduler is not None:
            schedulers.append({"scheduler": self.make_scheduler(optimizer), "monitor": "val/loss"})
        if self.warmup_steps:  # a factor that grows from step to step, on top of what the scheduler does
            first = 1 / (self.warmup_steps + 1)
            warmup = LinearLR(optimizer, start_factor=first, total_iters=self.warmup_steps)
            schedulers.append({"scheduler": warmup, "interval": "step", "name": "warmup"})
        return [optimizer], schedulers
