"""Measures a bundle: each of its formats in a process of its own, in turns, on the machine that will serve it."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..config import PACKAGE
from ..console import bar, python, shown, write_json
from ..errors import UserError
from ..export.bundle import add_to
from ..export.card import BENCHMARK, BENCHMARK_PICTURE, card
from ..export.formats import FORMATS
from ..export.timing import Timer
from ..export.verify import read_checked
from ..inference.signing import SIGNATURE, signer
from .options import Options
from .report import circumstances, plot, print_table, speedup

EAGER = "safetensors"  # eager mode is built from the weights
COLUMNS = {
    "format": "{format}",
    "batch": "{batch_size}",
    "p50 (ms)": "{p50_ms:.3f}",
    "p95 (ms)": "{p95_ms:.3f}",
    "samples/s": "{samples_per_second:,.0f}",
    "speedup": "{speedup:.2f}",
    "in the rounds": "{speedup_range[0]:.2f} to {speedup_range[1]:.2f}",
}
log = logging.getLogger(__name__)


def measure_bundle(folder: Path, options: Options, run_dir: Path) -> None:
    """Writes the figures into the run's directory, and into the bundle with its card."""
    log.info("bundle      %s", shown(folder))
    manifest = read_checked(folder)
    if (folder / SIGNATURE).exists() and options.sign is None:
        raise UserError(f"{shown(folder)} is signed, and gets the figures: add sign=<private key> to sign it again.")
    sign = signer(options.sign, "sign") if options.sign is not None else None
    names, sizes = choose_formats(folder, manifest, options), choose_batch_sizes(manifest, options)
    calls, threads = time_calls(folder, names, sizes, options), options.num_threads
    by_size = {size: to_rows(calls[size], size) for size in sizes}
    rows = [row for of_size in by_size.values() for row in of_size]
    settings = {"num_threads": threads, "num_rounds": options.num_rounds, "seconds": options.seconds}
    measured = {**circumstances(), **settings, "rows": rows}
    panels = {"one sample" if size == 1 else f"a batch of {size}": of_size for size, of_size in by_size.items()}
    text, axis = "{p50_ms:.3f} ms, {speedup:.1f} x", "ms a call: the median, and the line to p95"
    title = f"{measured['machine']['processor']}, {threads} thread{'s' * (threads > 1)}"
    write_json(measured, run_dir / BENCHMARK)
    plot(panels, "{format}", "p50_ms", "p50_to_p95_ms", text, axis, title).savefig(run_dir / BENCHMARK_PICTURE, dpi=120)
    print_table(rows, COLUMNS)
    log.info("run         %s", shown(run_dir))

    def write(where: Path) -> None:
        for name in (BENCHMARK, BENCHMARK_PICTURE):
            shutil.copy(run_dir / name, where)
        (where / "README.md").write_text(card(where, manifest, measured), encoding="utf-8")

    try:
        add_to(folder, manifest, write, sign)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{shown(folder)} cannot be written: {reason}; the figures are in {shown(run_dir)}.") from error
    log.info("bundle      %s has the figures in its card", shown(folder))
    log.info("next        read %s", shown(folder / "README.md"))
    log.info("            %s -m %s verify bundle=%s", python(), PACKAGE, shown(folder))


def choose_formats(folder: Path, manifest: Mapping[str, Any], options: Options) -> list[str]:
    """Returns the names of the formats to measure; eager mode comes first."""
    written = [format for format in FORMATS.values() if format.file in manifest["files"]]
    names = [format.name for format in written]
    if EAGER not in names:
        raise UserError(
            f"{shown(folder)} has no {FORMATS[EAGER].file}, from which eager mode is built: export with "
            f"formats=[{','.join([*names, EAGER])}]."
        )
    code = [format.file for format in written if format.code and not options.trust]
    if code:
        log.info("left out    %s: code, which runs only with trust=true", ", ".join(code))
    return sorted((format.name for format in written if format.file not in code), key=lambda name: name != EAGER)


def choose_batch_sizes(manifest: Mapping[str, Any], options: Options) -> list[int]:
    largest = manifest["max_batch_size"]
    sizes = sorted(set(options.batch_sizes or [1, largest]))
    for size in sizes:
        if not 1 <= size <= largest:
            raise UserError(f"batch_sizes={size} is out of range: this bundle was verified for 1 to {largest}.")
    return sizes


def time_calls(
    folder: Path, names: Sequence[str], sizes: Sequence[int], options: Options
) -> dict[int, dict[str, list[list[float]]]]:
    """Returns the seconds of each call as `[batch size][format][round]`; the formats take turns."""
    calls: dict[int, dict[str, list[list[float]]]] = {size: {name: [] for name in names} for size in sizes}
    turns = [(size, name) for _ in range(options.num_rounds) for size in sizes for name in names]
    log.info("measuring   %d formats, for about %.0f s", len(names), len(turns) * options.seconds)
    with ExitStack() as stack:
        timers = {}
        for name in names:
            timer = Timer(name, folder / FORMATS[name].file, folder, options.num_threads)
            timers[name] = stack.enter_context(timer)
            timer.time(1, 0.0)  # loads the file before the first round
        for size, name in bar(turns, "measuring"):
            calls[size][name].append(timers[name].time(size, options.seconds))
    return calls


def to_rows(calls: Mapping[str, Sequence[Sequence[float]]], batch_size: int) -> list[dict[str, Any]]:
    """Returns a row for each format; `calls[format][round]` are the seconds of each call, those of eager mode too."""
    rows = []
    medians = {name: [float(np.median(seconds)) for seconds in rounds] for name, rounds in calls.items()}
    for name, rounds in calls.items():
        seconds = np.concatenate([np.asarray(of_round) for of_round in rounds])
        p50, p95 = (np.percentile(seconds, [50, 95]) * 1e3).tolist()
        figures = {"num_calls": len(seconds), "p50_ms": p50, "p95_ms": p95, "p50_to_p95_ms": [p50, p95]}
        rate = batch_size * len(seconds) / float(seconds.sum())
        ratios = speedup(medians[EAGER], medians[name])
        label = "eager" if name == EAGER else name
        rows.append({"format": label, "batch_size": batch_size, **figures, "samples_per_second": rate, **ratios})
    return rows
