"""The LightningModule that all tasks share: a network that is trained, and evaluated on every sample exactly once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from ..data.samples import Batch
from ..errors import UserError
from ..spec import DataSpec
from .layers import Normalize
from .optimizers import build_optimizer, build_schedules, freeze_named, hold_frozen, step_plateau_schedules


@dataclass
class EpochSums:
    """Sums over the samples of an epoch; a log call or `.item()` in each step would cost more than a small network."""

    loss: Tensor
    metric: Tensor
    count: int = 0

    @classmethod
    def zero(cls, dtype: torch.dtype, device: torch.device) -> "EpochSums":
        """Of the same dtype on all ranks, those without a sample included."""
        zero = torch.zeros((), device=device)
        return cls(zero.to(torch.promote_types(dtype, torch.float32)), zero.long())

    def add(self, mean_loss: Tensor, metric_sum: Tensor, count: int) -> None:
        self.loss.add_(mean_loss.detach(), alpha=count)
        self.metric = self.metric + metric_sum
        self.count += count

    def means(self, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Means of the loss and of the metric over the samples of all ranks."""
        count = torch.full_like(self.loss, self.count)
        sums = torch.stack([self.loss, self.metric.to(count.dtype), count])
        loss, metric, count = strategy.reduce(sums, reduce_op="sum").unbind()
        return loss / count, metric / count

    def state_dict(self, strategy: Strategy) -> dict[str, Tensor | int]:
        """The sums over all ranks, as plain data."""
        own = self.loss.clone(), self.metric.clone(), torch.tensor(self.count, device=self.loss.device)
        loss, metric, count = (strategy.reduce(value, reduce_op="sum") for value in own)
        return {"loss": loss.cpu(), "metric": metric.cpu(), "count": int(count)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor | int], device: torch.device) -> "EpochSums":
        loss, metric = (torch.as_tensor(state[name], device=device) for name in ("loss", "metric"))
        return cls(loss, metric, int(state["count"]))


class BaseModule(pl.LightningModule):
    """Trains `net(spec)`, from raw input `(B, *spec.input_shape)` to outputs `(B, K)`.

    Logs `loss` and `train_metric` in training, and `loss` and the scores under `val/` and `test/`, once an epoch. Every
    sample counts once, whatever the number of processes, so the values are those of one process.

    `weights` names the file that `load_starting_point` reads. It is not read here: a trained model is built again
    without it.
    """

    train_metric: str  # the name under which `metric_from_mean` of the mean of `metric_sum` is logged in training
    val_scores: MetricCollection
    test_scores: MetricCollection
    test_counts: Metric  # counts of test samples that are plotted

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
        self.freezes = freeze is not None  # a network that freezes some of its own weights sets their modules itself
        self.weights = weights
        self.pretrained_names: frozenset[str] = frozenset()  # of the parameters that were taken from `weights`
        self.pretrained_lr_factor = pretrained_lr_factor
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.warmup_steps = warmup_steps
        self.compiled = compile
        self.channels_last = channels_last
        self.counts: Tensor | None = None  # the result of `test_counts`, after a test
        self.skips_nonfinite = False  # whether training batches with a loss that is not finite are left out of `train/`
        self._sums: dict[str, EpochSums] = {}
        self._resumed: EpochSums | None = None  # of an epoch that is continued

    def batch_loss(self, outputs: Tensor, y: Tensor, training: bool) -> Tensor:
        """The mean over the samples; label smoothing is for training alone."""
        raise NotImplementedError

    def metric_sum(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The sum over the samples of what `train_metric` is the mean of, as an integer or a float."""
        raise NotImplementedError

    def metric_from_mean(self, mean: Tensor) -> Tensor:
        return mean

    def read_scores(self, scores: MetricCollection) -> dict[str, Tensor]:
        values: dict[str, Tensor] = scores.compute()
        return values

    def score_inputs(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions and the truth that the scores are updated with."""
        return outputs, y

    def test_figures(self, first: Tensor, y: Tensor) -> dict[str, float]:
        """The scores by their names, from the exported first output `(N, K)` of all test samples; sets `counts` too."""
        self.test_scores.reset()
        inputs = self.score_inputs(first, y)
        self.test_scores.update(*inputs)
        self.counts = self.test_counts(*inputs)
        return {name: value.item() for name, value in self.read_scores(self.test_scores).items()}

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        return outputs

    def configure_model(self) -> None:
        if self.channels_last:  # before ddp lays out its buckets like the weights
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]

    def on_fit_start(self) -> None:
        if self.compiled:  # in place, which keeps the names in a checkpoint; `evaluate` and `export` do not compile
            self.net.compile()

    def on_train_start(self) -> None:
        self._sums = {"train": self._resumed} if self._resumed and self.global_rank == 0 else {}
        self._resumed = None
        self.hold_frozen()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_sums"] = self._sums.get("train", self._zero_sums()).state_dict(self.trainer.strategy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("epoch_sums")
        self._resumed = EpochSums.from_state_dict(state, self.device) if state else None

    def hold_frozen(self) -> None:
        """Runs after everything that sets modules to training mode or replaces them, as `sync_batchnorm` does."""
        if self.freezes:
            hold_frozen(self.net)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        outputs = self(x)
        loss = self.batch_loss(outputs, y, training=True)
        if not self.skips_nonfinite or torch.isfinite(loss):
            self._add("train", outputs, y, loss)
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
        self._add(split, outputs, y, self.batch_loss(outputs, y, training=False))
        for metric in metrics:
            metric.update(*self.score_inputs(outputs, y))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # Not in on_train_epoch_end, which comes after the progress bar has shown the values of the epoch.
        if self.trainer.is_last_batch:
            loss, mean = self._means("train")
            self._log({"train/loss": loss, f"train/{self.train_metric}": self.metric_from_mean(mean)})

    def on_validation_epoch_end(self) -> None:
        loss = self._means("val")[0]
        self._log({"val/loss": loss, **self.read_scores(self.val_scores)})
        self.val_scores.reset()
        step_plateau_schedules(self.trainer, loss.item())

    def on_test_epoch_end(self) -> None:
        self._log({"test/loss": self._means("test")[0], **self.read_scores(self.test_scores)})
        self.test_scores.reset()
        self.counts = self.test_counts.compute()  # on all ranks: it waits for their counts
        self.test_counts.reset()

    def _log(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            in_bar = name.endswith(("loss", self.train_metric))  # the bar has no room for all
            # All ranks hold the same values already; sync_dist only tells Lightning so.
            self.log(name, value, prog_bar=in_bar, on_step=False, on_epoch=True, sync_dist=True)

    def _add(self, split: str, outputs: Tensor, y: Tensor, loss: Tensor) -> None:
        if split not in self._sums:
            self._sums[split] = self._zero_sums()
        self._sums[split].add(loss, self.metric_sum(outputs.detach(), y), len(y))

    def _means(self, split: str) -> tuple[Tensor, Tensor]:
        """Means of the loss and of `metric_sum` over the samples of all ranks since the last call."""
        return (self._sums.pop(split, None) or self._zero_sums()).means(self.trainer.strategy)

    def _zero_sums(self) -> EpochSums:
        return EpochSums.zero(self.dtype, self.device)  # type: ignore[arg-type]

    def build_optimizer(self) -> Optimizer:
        names, factor = self.pretrained_names, self.pretrained_lr_factor
        return build_optimizer(self.make_optimizer, self.named_parameters(), names, factor)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.build_optimizer()
        factor = self.pretrained_lr_factor
        return [optimizer], build_schedules(optimizer, self.make_scheduler, self.warmup_steps, factor)
