"""Measures a bundle: each of its formats in a process of its own, in turns, on the machine that will serve it."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PACKAGE
from ..console import bar, python, shown, write_json
from ..errors import UserError
from ..export.bundle import add_to
from ..export.card import BENCHMARK, BENCHMARK_PICTURE, card
from ..export.formats import FORMATS
from ..export.timing import Timer
from ..export.verify import read_checked
from ..inference.runtime import GOLDEN, find_bundle
from . import formats
from .machine import machine

if TYPE_CHECKING:
    from .benchmark import Options

log = logging.getLogger(__name__)


def measure_bundle(options: Options, artifact_dir: Path, run_dir: Path) -> None:
    folder = find_bundle(str(options.bundle), artifact_dir)
    log.info("bundle      %s", shown(folder))
    manifest = read_checked(folder)
    names = _formats(folder, manifest, options)
    times = _times(folder, names, _batch_sizes(manifest, options), options)
    _report(times, folder, manifest, options, run_dir)


def _times(
    folder: Path, names: Sequence[str], batch_sizes: Sequence[int], options: Options
) -> dict[int, dict[str, list[list[float]]]]:
    """Seconds of each call, as `[batch size][format][round]`; each format has a process of its own, in turns."""
    shown_as = {name: formats.EAGER if name == "safetensors" else name for name in names}
    times: dict[int, dict[str, list[list[float]]]] = {
        size: {name: [] for name in shown_as.values()} for size in batch_sizes
    }
    turns = [(size, name) for _ in range(options.num_rounds) for size in batch_sizes for name in names]
    log.info("measuring   %d formats, for about %.0f s", len(names), len(turns) * options.seconds)
    with ExitStack() as stack:
        timers = {
            name: stack.enter_context(Timer(name, folder / FORMATS[name].file, folder / GOLDEN, options.num_threads))
            for name in names
        }
        for name in names:  # loading is no part of a round
            timers[name].time(1, 0.0)
        for size, name in bar(turns, "measuring"):
            times[size][shown_as[name]].append(timers[name].time(size, options.seconds))
    return times


def _formats(folder: Path, manifest: Mapping[str, Any], options: Options) -> list[str]:
    """Eager mode, which is built from the weights, comes first."""
    written = [format for format in FORMATS.values() if format.file in manifest["files"]]
    if "safetensors" not in {format.name for format in written}:
        raise UserError(
            f"{shown(folder)} has no {FORMATS['safetensors'].file}, from which eager mode is built: export with "
            f"formats=[{','.join([*(format.name for format in written), 'safetensors'])}]."
        )
    code = [format.file for format in written if format.code and not options.trust]
    if code:
        log.info("left out    %s: code, which runs only with trust=true", ", ".join(code))
    chosen = [format.name for format in written if not format.code or options.trust]
    return sorted(chosen, key=lambda name: name != "safetensors")


def _batch_sizes(manifest: Mapping[str, Any], options: Options) -> list[int]:
    largest = manifest["max_batch_size"]
    sizes = sorted(set(options.batch_sizes or [1, largest]))
    for size in sizes:
        if not 1 <= size <= largest:
            raise UserError(f"batch_sizes={size} is out of range: this bundle was verified for 1 to {largest}.")
    return sizes


def _report(
    times: Mapping[int, Mapping[str, list[list[float]]]],
    folder: Path,
    manifest: Mapping[str, Any],
    options: Options,
    run_dir: Path,
) -> None:
    """Table, `benchmark.json` and picture, in the run's directory and in the bundle with its card."""
    rows = [row for size, of_size in times.items() for row in formats.rows_of(of_size, size)]
    measured = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "num_threads": options.num_threads,
        "num_rounds": options.num_rounds,
        "seconds": options.seconds,
        "rows": rows,
    }

    def write(where: Path) -> None:
        write_json(measured, where / BENCHMARK)
        formats.plot(measured, where / BENCHMARK_PICTURE)

    def write_with_card(where: Path) -> None:
        write(where)
        (where / "README.md").write_text(card(manifest, measured), encoding="utf-8")

    formats.print_table(rows)
    write(run_dir)
    log.info("run         %s", shown(run_dir))
    try:
        add_to(folder, manifest, write_with_card)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{shown(folder)} cannot be written: {reason}; the figures are in {shown(run_dir)}.") from error
    log.info("bundle      %s has the figures in its card", shown(folder))
    log.info("next        read %s", shown(folder / "README.md"))
    log.info("            %s -m %s verify bundle=%s", python(), PACKAGE, shown(folder))
