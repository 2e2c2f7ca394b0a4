"""Error analysis of a test: the figures of each label, the pairs that are confused, and the samples that went wrong."""

import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ..atomic import atomic_write
from ..console import shown, wide_console
from ..errors import one_line
from ..export.network import description_of
from ..inference.signature import Column
from ..spec import DataSpec

log = logging.getLogger(__name__)

NUM_SAMPLES = 12  # in each row of the sheet
MOST_LABELS = 4096  # a table of all pairs of more would fill the memory
NUM_POINTS = 4096  # of the scatter of a regression
NUM_LABELS, NUM_PAIRS = 20, 5  # lines on the terminal
SHEET, SCATTER, LABELS, ROWS = "mistakes.png", "predictions.png", "labels.csv", "mistakes.csv"


class Hardest:
    """The samples with the highest scores so far: inputs `(k, ...)`, truth `(k, ...)` and predictions `(k, K)`."""

    def __init__(self, spec: DataSpec, size: int = NUM_SAMPLES) -> None:
        self.size = size
        dtype = getattr(torch, spec.input_dtype)
        self.inputs = torch.zeros(size, *spec.input_shape, dtype=dtype)
        self.scores = torch.full((size,), -torch.inf)
        self.places = torch.full((size,), -1, dtype=torch.int64)  # in the test split, if one process reads it
        self.truth = torch.zeros(size, *((len(spec.labels),) if spec.task == "multilabel" else ()), dtype=torch.float64)
        self.predictions = torch.zeros(size, spec.num_outputs, dtype=torch.float64)

    def add(self, scores: Tensor, *parts: Tensor) -> None:
        """Adds samples; a score of -inf leaves one out."""
        scores = scores.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        new = scores.topk(min(self.size, len(scores))).indices  # of a large batch only few leave their device
        best = (joined := torch.cat([self.scores, scores[new].cpu()])).topk(self.size).indices
        self.scores = joined[best]
        for name, part in zip(("inputs", "places", "truth", "predictions"), parts, strict=True):
            kept = getattr(self, name)
            setattr(self, name, torch.cat([kept, part[new.to(part.device)].cpu().to(kept.dtype)])[best])

    def gather(self) -> None:
        """Takes those of all ranks together."""
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (self.scores, self.inputs, self.places, self.truth, self.predictions))
        self.scores = torch.full((self.size,), -torch.inf)
        for of_rank in found:
            self.add(*of_rank)

    def __len__(self) -> int:
        return int((self.scores > -torch.inf).sum())


class ErrorAnalysis(Callback):
    """For modules with a `spec` (DataSpec), whose batches are `(x, y)`; other modules are left alone.

    What `forward` returned last in the test step is taken as the logits or probabilities `(B, K)` of labels, or as the
    prediction of a regression, as the module's `deployed()` describes it.
    """

    def __init__(self) -> None:
        self._answers: list[Any] = []  # what `forward` returned in this step
        self.spec: DataSpec | None = None
        self.reason = ""  # why there is no analysis

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        spec = getattr(pl_module, "spec", None)
        self.spec, self.reason = spec if isinstance(spec, DataSpec) and len(spec.labels) <= MOST_LABELS else None, ""
        if self.spec is None:
            return
        with self._guarded():
            self._in_units = _in_units(pl_module) if self.spec.task == "regression" else None
        self._hook = pl_module.register_forward_hook(self._keep)
        num_labels = len(self.spec.labels)
        self.counts = torch.zeros(num_labels, num_labels if self.spec.task == "classification" else 4).long()
        self.wrong, self.unsure = Hardest(self.spec), Hardest(self.spec)
        self.points = Hardest(self.spec, NUM_POINTS)
        self.points.inputs = torch.zeros(NUM_POINTS, 0)
        self.num_samples = 0

    def _keep(self, module: Any, inputs: Any, answer: Any) -> None:
        self._answers.append(answer)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.spec is not None and not self.reason:
            with self._guarded():
                self._add(self.spec, batch, batch_idx, trainer.world_size == 1)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a module of any kind has batches, answers and a `deployed()` of any kind
            self.reason = one_line(error)

    @torch.no_grad()
    def _add(self, spec: DataSpec, batch: Any, batch_idx: int, is_alone: bool) -> None:
        answers, self._answers = self._answers, []
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            return
        x, y = batch
        tensors = [answer for answer in answers if isinstance(answer, Tensor) and answer.ndim]
        # fsdp calls the whole step by way of `forward`, which then returns what the step returns.
        fitting = [found for found in tensors if len(found) == len(y) and found[:1].numel() == spec.num_outputs]
        if not fitting:
            return
        answer = fitting[-1].reshape(len(y), -1).double()
        places = torch.arange(self.num_samples, self.num_samples + len(y)) if is_alone else torch.full((len(y),), -1)
        self.num_samples += len(y)
        if spec.task == "regression":
            if self._in_units is None:
                return
            answer, truth = self._in_units(answer)[:, 0], y.double() + spec.target_offset
            self.wrong.add((answer - truth).abs(), x, places, truth, answer[:, None])
            scores = torch.rand(len(y), generator=torch.Generator().manual_seed(batch_idx))
            self.points.add(scores, x.new_zeros(len(y), 0), places, truth, answer[:, None])
            return
        if spec.task == "multilabel":
            probabilities = answer.sigmoid() if ((answer < 0) | (answer > 1)).any() else answer
            chosen, applies = probabilities > 0.5, y > 0.5
            parts = [chosen & applies, chosen & ~applies, ~chosen & applies, ~chosen & ~applies]
            self.counts += torch.stack([part.sum(dim=0) for part in parts], dim=1).cpu()
            distance = (probabilities - y).abs().amax(dim=1)
            wrong = torch.where((chosen != applies).any(dim=1), distance, -torch.inf)
            unsure = -(probabilities - 0.5).abs().amin(dim=1)
        else:
            is_probable = (answer >= 0).all() and torch.allclose(answer.sum(dim=1), answer.new_ones(len(y)), atol=1e-3)
            probabilities = answer if is_probable else answer.softmax(dim=1)
            chosen = probabilities.argmax(dim=1)
            pairs = torch.bincount((y * len(spec.labels) + chosen).cpu(), minlength=self.counts.numel())
            self.counts += pairs.reshape(self.counts.shape)
            best, rows = probabilities.amax(dim=1), torch.arange(len(y), device=y.device)
            wrong = torch.where(chosen != y, best - probabilities[rows, y], -torch.inf)
            top = probabilities.topk(2, dim=1).values
            unsure = top[:, 1] - top[:, 0]
        self.wrong.add(wrong, x, places, y, probabilities)
        self.unsure.add(unsure, x, places, y, probabilities)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.spec is None or trainer.world_size == 1:
            return
        is_whole = torch.tensor(not self.reason, dtype=torch.int, device=pl_module.device)
        if not trainer.strategy.reduce(is_whole, reduce_op="min"):
            self.reason = self.reason or "another process met an error"
            return
        for hardest in (self.wrong, self.unsure, self.points):
            hardest.gather()
        self.counts = torch.as_tensor(trainer.strategy.reduce(self.counts.to(pl_module.device), reduce_op="sum")).cpu()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # the bar has ended
        if self.spec is None:
            return
        self._hook.remove()
        if not trainer.is_global_zero or not (self.reason or len(self.unsure) or len(self.points)):
            return
        if not self.reason:
            with self._guarded():
                self._report(self.spec, Path(trainer.default_root_dir), _files_of(trainer))
        if self.reason:
            log.warning("warning     the errors of this module are not analysed: %s", self.reason)

    def _report(self, spec: DataSpec, folder: Path, files: Sequence[str]) -> None:
        if spec.task == "regression":
            _plot_scatter(self.points, spec, folder / SCATTER)
        else:
            _report_labels(self.counts, spec, folder / LABELS)
        kinds = {"most wrong": self.wrong, "least sure": self.unsure}
        if spec.columns:
            _write_rows(kinds, spec, folder / ROWS)
        elif len(spec.input_shape) == 3 and spec.input_shape[0] in (1, 3):
            _plot_sheet(kinds, spec, files, folder / SHEET)


def _files_of(trainer: pl.Trainer) -> Sequence[str]:
    """The names of the picture files of the test split, if it is made of some."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    files = getattr(getattr(datamodule, "samples", {}).get("test"), "files", ())
    return [Path(name.decode(errors="replace")).name for name in files]


def _in_units(module: pl.LightningModule) -> Callable[[Tensor], Tensor] | None:
    """What turns the return value of `forward` into the target's units; None if `deployed()` does not tell."""
    described = description_of(module)
    names = [name for name, output in described.outputs.items() if output.mean]
    if len(names) != 1:
        return None
    if not callable(described.result):
        return lambda answer: answer
    zero, one, two = (described.result({names[0]: torch.tensor(value).double()}) for value in (0.0, 1.0, 2.0))
    factor = one - zero
    return None if not torch.isclose(two - one, factor) else lambda answer: (answer - zero) / factor


def _report_labels(counts: Tensor, spec: DataSpec, path: Path) -> None:
    """Prints and writes precision, recall and F1 of each label, and prints the pairs that are confused most often."""
    if spec.task == "multilabel":
        right, false, missed = counts[:, 0], counts[:, 1], counts[:, 2]
    else:
        right, false = counts.diagonal(), counts.sum(dim=0) - counts.diagonal()
        missed = counts.sum(dim=1) - counts.diagonal()
    precision, recall = right / (right + false), right / (right + missed)
    f1 = 2 * right / (2 * right + false + missed)
    figures = torch.stack([precision, recall, f1], dim=1).tolist()
    samples = (right + missed).int().tolist()
    rows = [
        [label, str(count), *("" if value != value else f"{value:.4f}" for value in of_label)]
        for label, count, of_label in zip(spec.labels, samples, figures, strict=True)
    ]
    header = ["label", "samples", "precision", "recall", "f1"]
    with atomic_write(path, "w") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    table = Table(title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    if len(rows) > NUM_LABELS:
        table.title = f"the {NUM_LABELS} of {len(rows)} labels with the lowest f1"
        rows = [rows[place] for place in f1.nan_to_num(2.0).argsort()[:NUM_LABELS].tolist()]
    for name in header:
        table.add_column(name, justify="left" if name == "label" else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    wide_console().print(table)
    if spec.task == "classification":
        confused = counts.clone().fill_diagonal_(0)
        for place in confused.flatten().argsort(descending=True, stable=True)[:NUM_PAIRS].tolist():
            truth, taken = divmod(place, len(spec.labels))
            if number := int(confused[truth, taken]):
                share = f"{number} of {samples[truth]} samples of '{spec.labels[truth]}'"
                log.info("confused    %s taken for '%s'", share, spec.labels[taken])
    log.info("labels      %s", shown(path))


def _described(hardest: Hardest, place: int, spec: DataSpec) -> tuple[str, str, str]:
    """Returns the truth, the prediction and its probability as text."""
    truth, prediction = hardest.truth[place], hardest.predictions[place]
    if spec.task == "regression":
        return f"{truth.item():.7g}", f"{prediction.item():.7g}", ""
    if spec.task == "multilabel":
        named = [
            ";".join(label for label, applies in zip(spec.labels, chosen, strict=True) if applies)
            for chosen in ((truth > 0.5).tolist(), (prediction > 0.5).tolist())
        ]
        return named[0] or "none", named[1] or "none", ""
    best = int(prediction.argmax())
    return spec.labels[int(truth)], spec.labels[best], f"{prediction[best].item():.3f}"


def _write_rows(kinds: dict[str, Hardest], spec: DataSpec, path: Path) -> None:
    columns = [Column.from_dict(column) for column in spec.columns]
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [column.name for column in columns]
        own = [f"{name}_" if name in names else name for name in ("kind", "truth", "prediction", "probability")]
        writer.writerow([*own, *names])
        for kind, hardest in kinds.items():
            for place in range(len(hardest)):
                values = hardest.inputs[place].tolist()
                cells = [_cell(value, column) for value, column in zip(values, columns, strict=True)]
                writer.writerow([kind, *_described(hardest, place, spec), *cells])
    log.info("mistakes    %s: the rows that are most wrong%s", shown(path), " and least sure" if spec.labels else "")


def _cell(value: float, column: Column) -> str:
    """Returns a cell as the table had it, as far as float32 tells."""
    if column.categories is not None:
        return column.categories[int(value) - 1] if value >= 1 else ""
    if value != value:
        return ""
    return f"{value + column.offset:.15g}" if column.offset else f"{value:.7g}"


def _plot_sheet(kinds: dict[str, Hardest], spec: DataSpec, files: Sequence[str], path: Path) -> None:
    """Draws the pictures, with truth, prediction and probability above each."""
    shown_kinds = {kind: hardest for kind, hardest in kinds.items() if len(hardest)}
    num_columns = NUM_SAMPLES // 2
    heights = [1 if len(hardest) <= num_columns else 2 for hardest in shown_kinds.values()]
    figure = Figure(figsize=(1.9 * num_columns, 2.6 * sum(heights)), layout="constrained")
    parts = np.atleast_1d(np.array(figure.subfigures(len(heights), 1, height_ratios=heights)))
    for part, height, (kind, hardest) in zip(parts, heights, shown_kinds.items(), strict=True):
        part.suptitle(kind, fontsize=12, fontweight="bold", x=0.01, ha="left")
        for place, axes in enumerate(np.ravel(part.subplots(height, num_columns))):
            axes.axis("off")
            if place >= len(hardest):
                continue
            low, high = spec.input_range
            pixels = (hardest.inputs[place].float() - low) / max(high - low, 1e-12)
            axes.imshow(pixels.permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
            truth, prediction, probability = (_plain(word) for word in _described(hardest, place, spec))
            name = int(hardest.places[place])
            below = f"\n{_plain(files[name])}" if 0 <= name < len(files) else ""
            axes.set_title(f"{truth}\n-> {prediction} {probability}{below}", fontsize=8)
    figure.savefig(path, dpi=120)
    log.info("mistakes    %s: the pictures that are most wrong and least sure; truth -> prediction", shown(path))


def _plain(word: str) -> str:
    """Shortens a word; a dollar sign would open a formula."""
    return (word if len(word) <= 22 else f"{word[:20]}...").replace("$", r"\$")


def _plot_scatter(points: Hardest, spec: DataSpec, path: Path) -> None:
    """Draws predictions over true values, in the target's units."""
    number = len(points)
    truth, predicted = points.truth[:number].numpy(), points.predictions[:number, 0].numpy()
    with plt.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(5.5, 5.5), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(truth, predicted, s=12, alpha=max(0.15, min(0.8, 200 / number)), color="#0072B2", linewidths=0)
        ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
        axes.plot(ends, ends, color="#D55E00", linewidth=1, label="prediction = truth")
        axes.set(xlabel=f"{spec.target or 'target'}, truth", ylabel="prediction", title=f"{number:,} test samples")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=120)
    log.info("predictions %s: a point for each of %s samples", shown(path), f"{number:,}")
