"""What both kinds of measurement share: the machine, ratios of rounds, a table and a picture."""

import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Column, Table

from ..cores import num_cores

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito (2008): the colour-blind can tell them apart.
BASELINE, OTHERS = "#999999", "#0072B2"


def circumstances() -> dict[str, Any]:
    """Returns when and on which machine, without the names of its host or its user."""
    machine = {
        "processor": _processor(),
        "num_cores": num_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {"measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def speedup(baseline: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """Returns the median and the range of the ratios of all rounds: what slows the machine slows both in a round."""
    ratios = [before / after for before, after in zip(baseline, seconds, strict=True)]
    return {"speedup": float(np.median(ratios)), "speedup_range": [min(ratios), max(ratios)]}


def print_table(rows: Rows, columns: Mapping[str, str]) -> None:
    """Prints `columns`, which are format strings by their headings; the first holds names, the others figures."""
    first, *others = columns
    headings = [Column(first, no_wrap=True), *(Column(other, justify="right", no_wrap=True) for other in others)]
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for row in rows:
        table.add_row(*(cell.format(**row) for cell in columns.values()))
    Console().print(table)


def plot(panels: Mapping[str, Rows], name: str, value: str, line: str, text: str, axis: str, title: str) -> Figure:
    """Draws a bar for each row with a line over its range, in panels by their headings; the baseline comes first.

    `value` and `line` are keys of the rows, `name` and `text` are format strings.
    """
    num_bars = max(map(len, panels.values()))
    figure = Figure(figsize=(1 + 6 * len(panels), 1.5 + 0.45 * num_bars), layout="constrained")
    for axes, (heading, rows) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for row, colour in zip(rows, [BASELINE, *[OTHERS] * num_bars], strict=False):
            size, (low, high), label = row[value], row[line], name.format(**row)
            axes.barh(label, size, color=colour, xerr=[[size - low], [high - size]], ecolor="black", capsize=3)
            behind = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
            axes.annotate(text.format(**row), (high, label), **behind)
        axes.set(xlim=(0, 1.6 * max(row[line][1] for row in rows)), xlabel=axis, title=heading)
        axes.invert_yaxis()
    figure.suptitle(title, fontsize=10)
    return figure
