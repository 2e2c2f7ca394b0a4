"""`debug=profiler`: where the time of a training step goes, as a table, a picture and a trace."""

import json
import logging
import time
from collections import defaultdict
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler
from matplotlib.figure import Figure

from .hooks import METRICS
from .terminal import shown

log = logging.getLogger(__name__)

# The part of a step that an action of Lightning belongs to; the first that fits. What is left is the loop around them.
PARTS = {
    "data": ("train_dataloader_next", "batch_to_device", "batch_transfer"),
    "forward": ("[Strategy]", ".training_step"),
    "metrics": (METRICS,),
    "backward": ("[Strategy]", ".backward"),
    "optimizer": ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"),
    "callbacks and logging": ("[Callback]", "on_train_batch_end", "on_train_epoch_end"),
}
EXACT = ("forward", "backward")  # all of their words must stand in the action
COLOURS = ("#E69F00", "#0072B2", "#CC79A7", "#56B4E9", "#009E73", "#D55E00", "#999999")  # Okabe and Ito (2008)
EPOCH, STEP = "run_training_epoch", "run_training_batch"
MOST_EVENTS = 50_000  # of a trace, which a browser must open


def part_of(action: str) -> str | None:
    for part, words in PARTS.items():
        if (all if part in EXACT else any)(word in action for word in words):
            return part
    return None


class StepProfiler(Profiler):
    """Counts for each part of a step the time that no inner action took; validation is no part of a step.

    On a GPU it waits after each action until the device is done, so that a part's time is its own: the sum is longer
    than an unwatched step.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(dirpath=dirpath, filename="profile")
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.num_steps = 0
        self.events: list[dict[str, object]] = []
        self.running: list[list[float | str]] = []  # name, start, seconds within
        self.validation_start = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("on_validation_start") and not self.validation_start and self._in_epoch():
            self.validation_start = time.perf_counter()
        self.running.append([action_name, time.perf_counter(), 0.0])

    def stop(self, action_name: str) -> None:
        if not any(name == action_name for name, _, _ in self.running):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        while (ended := self.running.pop())[0] != action_name:
            pass
        _, start, within = ended
        seconds = now - float(start)
        if self.running:
            self.running[-1][2] = float(self.running[-1][2]) + seconds
        if self._in_epoch() or action_name == EPOCH:
            self._count(action_name, float(start), seconds, float(within))

    def _count(self, action: str, start: float, seconds: float, within: float) -> None:
        if len(self.events) < MOST_EVENTS:
            event = {"name": action, "ph": "X", "pid": 0, "tid": 0, "ts": start * 1e6, "dur": seconds * 1e6}
            self.events.append(event)
        if self.validation_start:
            if action.startswith("[LightningModule]") and action.endswith("on_validation_end"):
                self.seconds["validation"] += time.perf_counter() - self.validation_start
                self.validation_start = 0.0
        elif action == EPOCH:
            self.seconds["epoch"] += seconds
        elif (part := part_of(action)) is not None:
            self.seconds[part] += seconds - within
        self.num_steps += action == STEP

    def _in_epoch(self) -> bool:
        return any(name == EPOCH for name, _, _ in self.running)

    def microseconds(self) -> dict[str, float]:
        """Of a step, by its parts; the loop is what of the epoch belongs to none of them, nor to validation."""
        parts = {part: self.seconds[part] for part in PARTS}
        parts["loop"] = self.seconds["epoch"] - self.seconds["validation"] - sum(parts.values())
        return {part: seconds * 1e6 / max(self.num_steps, 1) for part, seconds in parts.items()}

    def summary(self) -> str:
        """Beside the table it writes `profile.png`, and `profile.json` for ui.perfetto.dev or chrome://tracing."""
        if not self.num_steps:
            return ""
        parts = self.microseconds()
        whole = sum(parts.values())
        if self.dirpath is not None and self._local_rank in (None, 0):
            picture = Path(self.dirpath) / "profile.png"
            _plot(parts, picture)
            picture.with_suffix(".json").write_text(json.dumps({"traceEvents": self.events}), encoding="utf-8")
            log.info("profile     %s, and beside it profile.json for ui.perfetto.dev", shown(picture))
        lines = [f"a step takes {whole:,.0f} microseconds (mean of {self.num_steps})", ""]
        lines += [f"{part:<22} {figure:>9,.0f}  {100 * figure / whole:>4.0f} %" for part, figure in parts.items()]
        return "\n".join([*lines, ""])


def _plot(parts: dict[str, float], picture: Path) -> None:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(parts), list(parts.values()), color=COLOURS)
    whole = sum(parts.values())
    for part, value in parts.items():
        text = f"{value:,.0f}  ({100 * value / whole:.0f} %)"
        axes.annotate(text, (max(value, 0), part), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xlim(0, max(parts.values()) * 1.25)
    axes.invert_yaxis()
    axes.set_xlabel("microseconds of a step, each part without those within it")
    figure.savefig(picture, dpi=120)
