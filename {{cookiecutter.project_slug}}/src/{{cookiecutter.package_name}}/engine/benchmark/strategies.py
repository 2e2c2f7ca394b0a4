"""What was measured of training: as figures, as a table and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

# Okabe and Ito (2008): the colour-blind can tell them apart.
COLOURS = {True: "#999999", False: "#0072B2"}  # of loops written by hand, and of this project
HEADINGS = ("samples/s", "epoch\n(s)", "median", "waits", "MiB", "speed-\nup", "effi-\nciency", "of\nloop", "range")


class Key(NamedTuple):
    """A case: a strategy, `loop` or `ddp loop`, on so many devices."""

    name: str
    num_devices: int

    @property
    def by_hand(self) -> bool:
        return self.name.endswith("loop")

    def __str__(self) -> str:
        return f"{'' if self.by_hand else 'strategy='}{self.name} on {self.num_devices}"


Turns = Mapping[Key, Sequence[Mapping[str, float]]]


def rows_of(turns: Turns, num_samples: int, num_epochs: float) -> list[dict[str, Any]]:
    """`turns[case][round]` holds the `seconds` of a turn of `num_samples` samples, which are `num_epochs` epochs.

    An epoch is training and validation, with all that the project does beside them. Ratios are those of the fastest
    turns, which repeat better than medians, beside the smallest and the largest ratio of a round: within a round all
    were measured one after another, so what slows the machine slows all.
    """
    single = Key("single", 1)
    rows = []
    for key, of_case in turns.items():
        seconds = [turn["seconds"] for turn in of_case]
        epoch = [figure / num_epochs for figure in (min(seconds), float(np.median(seconds)), max(seconds))]
        waited = [turn["waited"] for turn in of_case if "waited" in turn]
        speedup = _ratio(turns, key, single)[0]
        row: dict[str, Any] = {
            "case": key.name,
            "num_devices": key.num_devices,
            "samples_per_second": num_samples / min(seconds),
            "epoch_seconds": dict(zip(("min", "median", "max"), epoch, strict=True)),
            "speedup": speedup,
            "efficiency": speedup / key.num_devices,
            "epoch_seconds_waiting_for_data": float(np.median(waited)) / num_epochs if waited else None,
            "peak_memory_bytes": of_case[-1]["memory"],
        }
        loops = {"ratio_to_loop": Key("loop", 1), "ratio_to_ddp_loop": Key("ddp loop", key.num_devices)}
        for name, loop in loops.items():
            if loop in turns and not key.by_hand:
                row[name], *row[f"{name}_range"] = _ratio(turns, key, loop)
        rows.append(row)
    return rows


def _ratio(turns: Turns, key: Key, other: Key) -> tuple[float, float, float]:
    """How many times as fast as the other: by the fastest turns, in the worst round and in the best."""
    own, its = ([turn["seconds"] for turn in turns[which]] for which in (key, other))
    of_rounds = [there / here for here, there in zip(own, its, strict=True)]
    return min(its) / min(own), min(of_rounds), max(of_rounds)


def once(rows: Sequence[dict[str, Any]], with_single: bool) -> list[dict[str, Any]]:
    """One device is measured beside each number of devices; it is told once."""
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        if with_single or row["case"] != "single":
            kept.setdefault((row["case"], row["num_devices"]), row)
    return list(kept.values())


def fastest(rows: Sequence[Mapping[str, Any]]) -> str:
    """The options of `train` that choose the fastest case."""
    best = max((row for row in rows if not _by_hand(row)), key=lambda row: float(row["samples_per_second"]))
    devices = "" if best["num_devices"] == 1 else f" trainer.devices={best['num_devices']}"
    return f"{best['case']}{devices}"


def _by_hand(row: Mapping[str, Any]) -> bool:
    return Key(row["case"], row["num_devices"]).by_hand


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """As wide as a terminal; an epoch and its wait for data in seconds, the range that of the ratios of a round."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("case", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        waited, memory = row["epoch_seconds_waiting_for_data"], row["peak_memory_bytes"]
        beside = "ratio_to_ddp_loop" if "ratio_to_ddp_loop" in row else "ratio_to_loop"
        ratios = [] if _by_hand(row) else [row["speedup"], row["efficiency"], row[beside]]
        table.add_row(
            f"{row['case']}, {row['num_devices']}",
            f"{row['samples_per_second']:,.0f}",
            *(f"{row['epoch_seconds'][which]:.3f}" for which in ("min", "median")),
            "" if waited is None else f"{waited:.3f}",
            "" if memory is None else f"{memory / 2**20:,.0f}",
            *(f"{ratio:.2f}" for ratio in ratios),
            "" if not ratios else "{:.2f}-{:.2f}".format(*row[f"{beside}_range"]),
            style="dim" if _by_hand(row) else "",
        )
    Console().print(table)


def plot(measured: Mapping[str, Any], picture: Path) -> None:
    """A bar a case: samples a second of its fastest epoch, and a line down to its slowest."""
    rows = measured["rows"]
    speeds = [row["samples_per_second"] for row in rows]
    slowest = [row["samples_per_second"] * row["epoch_seconds"]["min"] / row["epoch_seconds"]["max"] for row in rows]
    figure = Figure(figsize=(8, 1.8 + 0.45 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    lines = [[high - low for high, low in zip(speeds, slowest, strict=True)], [0.0] * len(rows)]
    names = [f"{row['case']}, {row['num_devices']} device{'s' * (row['num_devices'] > 1)}" for row in rows]
    colours = [COLOURS[_by_hand(row)] for row in rows]
    axes.barh(names, speeds, color=colours, xerr=lines, error_kw={"ecolor": "black", "capsize": 3})
    for name, row in zip(names, rows, strict=True):
        beside = row.get("ratio_to_ddp_loop", row.get("ratio_to_loop"))
        text = f"{row['samples_per_second']:,.0f}" + ("" if beside is None else f": {beside:.2f} of its loop")
        axes.annotate(
            text, (row["samples_per_second"], name), (6, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_xlim(0, max(speeds) * 1.35)
    axes.invert_yaxis()
    axes.set_xlabel("samples a second in the fastest epoch (the line: the slowest), validation included; grey: by hand")
    gpus = measured["machine"]["gpus"]
    where = f"{len(gpus)} x {gpus[0]}" if gpus else measured["machine"]["processor"]
    figure.suptitle(
        f"{measured['network']}, batch {measured['batch_size']}, {measured['precision']}, {where}", fontsize=10
    )
    figure.savefig(picture, dpi=120)
