"""Callbacks that watch a run and change nothing: progress, times, memory, equal replicas."""

import logging
import math
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from lightning.pytorch.strategies import DDPStrategy
from rich import box
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor

from ...console import wide_console, write_json
from ...data.description import DataDescription
from ...distributed.dealing import DealtLoader
from ...distributed.plan import BatchSplit
from ...errors import first_of
from ...runs import run_record

log = logging.getLogger(__name__)

PLACES = {"val": 0, "train": 1, "test": 2}  # of the figures of a split in a line
MOST_ROWS = 20  # of a table on the terminal

if sys.platform != "win32":
    import resource


def progress_bar() -> ProgressBar:
    """A bar on a terminal; in a pipe or a log file one line an epoch, because a bar would be thousands of lines."""
    return ThrottledBar(refresh_rate=10) if sys.stdout.isatty() else EpochLines()


class EpochLine:
    """Writes one line an epoch, `epoch  3/30    1.2 s  best  val/loss 0.1234  train/loss 0.2345`.

    Figures of the validation stand first, and each has its column. Epochs are counted from 1. `best` marks an epoch
    whose monitored figure is better than all before.
    """

    def __init__(self) -> None:
        self._start, self._names = 0.0, list[str]()
        self._best: float | None = None  # the monitored figure of the best epoch so far

    def start(self, trainer: pl.Trainer) -> None:
        self._start = time.perf_counter()
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        self._best = None if best is None else float(best)

    def write(self, trainer: pl.Trainer) -> str:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        new = sorted(
            figures.keys() - {*self._names},
            key=lambda name: (name != monitor, PLACES.get(name.partition("/")[0], 3), name),
        )
        self._names += new
        cells = [f"{name} {figures[name]:<9.4g}" if name in figures else " " * (len(name) + 10) for name in self._names]
        number, last = trainer.current_epoch + 1, max(trainer.max_epochs or 0, 0)
        counted = f"{number:{len(str(last))}}/{last}" if last else f"{number}"
        mark = "best" if self._is_best(trainer, figures.get(monitor or "")) else ""
        seconds = time.perf_counter() - self._start
        return f"epoch {counted}  {seconds:6.1f} s  {mark:4}  {'  '.join(cells)}".rstrip()

    def _is_best(self, trainer: pl.Trainer, figure: float | None) -> bool:
        if figure is None or math.isnan(figure):
            return False
        sign = -1 if getattr(trainer.checkpoint_callback, "mode", "min") == "max" else 1
        return self._best is None or sign * figure < sign * self._best


class ThrottledBar(RichProgressBar):
    """Updates ten times a second; Lightning's bar does so every step, which takes longer than a small network.

    Above it stays one line for each epoch, as much of it as the terminal is wide.
    """

    last = 0.0

    def __init__(self, refresh_rate: int) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.line = EpochLine()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.line.start(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        now = time.perf_counter()
        if now - self.last > 0.1 or trainer.is_last_batch:
            self.last = now
            super().on_train_batch_end(trainer, pl_module, *args)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.progress is not None:
            with self.progress.live._lock:  # the bar's own thread would print between the cursor's move and the line
                line = self.line.write(trainer)
                self.progress.console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")

    def _get_train_description(self, current_epoch: int) -> str:
        """Counts from 1, as the lines do: Lightning counts from 0, and has no public way to change it."""
        last = max(self.trainer.max_epochs or 0, 0)
        return f"Epoch {current_epoch + 1}" + (f"/{last}" if last else "") + " "


class EpochLines(ProgressBar):
    """Prints the line of each epoch, where no bar can stand."""

    def __init__(self) -> None:
        super().__init__()
        self.line = EpochLine()

    def disable(self) -> None:
        """Does nothing: Lightning calls it on all ranks but the first, which alone prints."""

    enable = disable

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.line.start(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print(self.line.write(trainer), flush=True)


class EpochSamples(Callback):
    """Says, before the first step, what the data is, how many samples an epoch has and how each batch is split.

    Notes it in `run.json`. The figures of an epoch are over exactly these samples.
    """

    def __init__(self, split: BatchSplit) -> None:
        self.split = split

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        loader, sentence = trainer.train_dataloader, "as many as the loaders give"
        loaders = {"train": loader, "val": trainer.val_dataloaders}
        data = DataDescription.of(getattr(trainer, "datamodule", None), loaders)
        print_data(data)
        if isinstance(loader, DealtLoader):
            num_steps = trainer.accumulate_grad_batches
            sizes = loader.batches.sizes(-(-int(trainer.num_training_batches) // num_steps))
            num_drawn = len(getattr(loader.batches.source, "sampler", ()))
            sentence = epoch_sentence(sizes, num_drawn, replace(self.split, num_steps=num_steps, is_auto=False))
        log.info("samples     %s", sentence)
        run_record.write_first_step(Path(trainer.default_root_dir), sentence, data.to_dict())


def print_data(data: DataDescription) -> None:
    """Prints tables of the labels and of the columns, and warns of labels that are rare in a split."""
    console = wide_console()
    if data.labels:
        table = Table("label", *(Column(split, justify="right") for split in data.splits), box=box.SIMPLE_HEAD)
        for label, counts in list(data.labels.items())[:MOST_ROWS]:
            table.add_row(escape(label), *(f"{count:,}" for count in counts.values()))
        if len(data.labels) > MOST_ROWS:
            table.add_row(f"and {len(data.labels) - MOST_ROWS:,} more, in run.json")
        table.add_section()
        table.add_row("samples", *(f"{count:,}" for count in data.splits.values()))
        console.print(table)
    elif data.splits:
        log.info("data        %s", ", ".join(f"{split} {count:,}" for split, count in data.splits.items()))
    if data.columns:
        table = Table("column", "read as", box=box.SIMPLE_HEAD)
        for name, kind in list(data.columns.items())[:MOST_ROWS]:
            table.add_row(escape(name), kind)
        if len(data.columns) > MOST_ROWS:
            table.add_row(f"and {len(data.columns) - MOST_ROWS:,} more", "in run.json")
        console.print(table)
    if rare := data.rare:
        log.warning("warning     hardly any samples of a label: %s", first_of(rare))


def epoch_sentence(sizes: list[int], num_drawn: int, split: BatchSplit) -> str:
    """Describes batches of `sizes` samples, out of `num_drawn`, in words."""
    num_samples, counts = sum(sizes), Counter(sizes).most_common()
    if len(counts) <= 2:
        of_each = [f"{'one' if count == 1 else count} of {size}{_parts(size, split)}" for size, count in counts]
        batches = " and ".join(of_each).replace(" of", " batch of" if counts[0][1] == 1 else " batches of", 1)
    else:
        batches = f"{len(sizes)} batches of {min(sizes)} to {max(sizes)}"
    left_out = f"; {num_drawn - num_samples:,} are left out" if num_drawn > num_samples else ""
    return f"{num_samples:,} an epoch, in {batches}{left_out}"


def _parts(size: int, split: BatchSplit) -> str:
    parts = replace(split, batch_size=size)
    return f" ({str(parts).partition(' = ')[2]})" if split.num_devices * split.num_steps > 1 else ""


class DataWait(Callback):
    """Logs `time/data`, the mean over the ranks of the seconds of an epoch that training waited for batches."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds = getattr(trainer.train_dataloader, "seconds_waited", None)
        if seconds is not None:
            pl_module.log("time/data", seconds, sync_dist=True)


class ReplicaCheck(Callback):
    """Stops a ddp run whose ranks no longer hold the same weights to the bit; compared after each epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size == 1 or not isinstance(trainer.strategy, DDPStrategy):  # fsdp shards the weights
            return
        names, weights = zip(*pl_module.named_parameters(), strict=True)
        own = torch.stack([_bit_sum(weight) for weight in weights])
        sums = [torch.empty_like(own) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(sums, own)
        differing = torch.nonzero(torch.stack(sums) != sums[0]).tolist()
        if differing:
            rank, position = differing[0]
            raise RuntimeError(
                f"rank {rank} and rank 0 hold different weights after epoch {trainer.current_epoch + 1}, "
                f"first in '{names[position]}': something changes them on one rank alone, "
                "or the ranks run different versions of the code or of torch."
            )


def _bit_sum(weight: Tensor) -> Tensor:
    """The sum of the bit patterns as integers, which does not depend on the order of the sum."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return weight.detach().contiguous().view(kind).sum(dtype=torch.int64)


class EpochTimes(Callback):
    """Writes `epoch_times.json`, the time of each epoch and the peak memory; `benchmark` adds it to its runs.

    An epoch lasts until the next one begins: validation, metrics and checkpoints are included, the start-up is not.
    """

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.starts.append(time.perf_counter())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ends = [*self.starts[1:], time.perf_counter()]
        peak = torch.tensor(_peak_memory_mib(pl_module.device), device=pl_module.device)
        figures = {
            "epoch_seconds": [end - start for start, end in zip(self.starts, ends, strict=True)],
            "steps_per_epoch": int(trainer.num_training_batches) // trainer.accumulate_grad_batches,
            # The peak of the fullest device, or of the largest process.
            "peak_memory_mib": float(trainer.strategy.reduce(peak, reduce_op="max")),
        }
        if trainer.is_global_zero:
            write_json(figures, Path(trainer.default_root_dir, "epoch_times.json"))


def _peak_memory_mib(device: torch.device) -> float:
    """Returns what torch held on the fullest GPU, or what this process held in the host's memory."""
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())) / 2**20
    if sys.platform == "win32":
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
