"""What was measured of a bundle: as figures, as a table and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

EAGER = "eager"
# Okabe and Ito (2008): the colour-blind can tell them apart.
COLOURS = {True: "#999999", False: "#0072B2"}  # of eager mode, and of the others

Times = Mapping[str, Sequence[Sequence[float]]]


def rows_of(times: Times, batch_size: int) -> list[dict[str, Any]]:
    """`times[name][round]` are the seconds of each call, eager mode among the names.

    The speedup is the median of the rounds' ratios of medians, beside the smallest and the largest of them: within a
    round all were measured one after another, so what slows the machine slows all.
    """
    rows = []
    eager = [float(np.median(calls)) for calls in times[EAGER]]
    for name, rounds in times.items():
        ratios = [before / float(np.median(calls)) for before, calls in zip(eager, rounds, strict=True)]
        calls = np.concatenate([np.asarray(calls) for calls in rounds])
        p50, p95 = np.percentile(calls, [50, 95])
        rows.append(
            {
                "format": name,
                "batch_size": batch_size,
                "num_calls": len(calls),
                "p50_ms": float(p50) * 1e3,
                "p95_ms": float(p95) * 1e3,
                "samples_per_second": batch_size * len(calls) / float(calls.sum()),
                "speedup": float(np.median(ratios)),
                "speedup_range": [min(ratios), max(ratios)],
            }
        )
    return rows


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("format", no_wrap=True)
    for heading in ("batch", "p50 (ms)", "p95 (ms)", "samples/s", "speedup", "in the rounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for position, row in enumerate(rows):
        low, high = row["speedup_range"]
        is_last = position + 1 < len(rows) and rows[position + 1]["batch_size"] != row["batch_size"]
        table.add_row(
            row["format"],
            str(row["batch_size"]),
            f"{row['p50_ms']:.3f}",
            f"{row['p95_ms']:.3f}",
            f"{row['samples_per_second']:,.0f}",
            "" if row["format"] == EAGER else f"{row['speedup']:.2f}",
            "" if row["format"] == EAGER else f"{low:.2f} to {high:.2f}",
            end_section=is_last,
        )
    Console().print(table)


def plot(benchmark: Mapping[str, Any], picture: Path) -> None:
    """A panel a batch size, a bar a format: the median of a call, with a line that ends at its p95."""
    rows = benchmark["rows"]
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    names = list(dict.fromkeys(row["format"] for row in rows))
    figure = Figure(figsize=(5.2 * len(sizes), 1.3 + 0.45 * len(names)), layout="constrained")
    for position, size in enumerate(sizes):
        panel = [row for row in rows if row["batch_size"] == size]
        axes = figure.add_subplot(1, len(sizes), position + 1)
        p50, p95 = ([row[figure_name] for row in panel] for figure_name in ("p50_ms", "p95_ms"))
        colours = [COLOURS[row["format"] == EAGER] for row in panel]
        tails = [[0.0] * len(panel), [high - low for low, high in zip(p50, p95, strict=True)]]
        axes.barh(names, p50, color=colours, xerr=tails, error_kw={"ecolor": "black", "capsize": 3})
        for name, row in zip(names, panel, strict=True):
            times = "" if name == EAGER else f", {row['speedup']:.1f} x"
            axes.annotate(
                f"{row['p50_ms']:.3f} ms{times}",
                (row["p95_ms"], name),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_xlim(0, max(p95) * 1.5)
        axes.invert_yaxis()
        axes.set_xlabel("ms a call: the median, and the line to p95")
        axes.set_title("one sample" if size == 1 else f"a batch of {size}")
    threads = benchmark["num_threads"]
    figure.suptitle(f"{benchmark['machine']['processor']}, {threads} thread{'s' * (threads > 1)}", fontsize=10)
    figure.savefig(picture, dpi=120)
