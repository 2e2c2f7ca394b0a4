"""Time every file of a bundle beside eager mode: p50, p95, samples a second, and how many times as fast.

python -m <package>.benchmark
python -m <package>.benchmark bundle=artifacts/<name>/<version> trust=true num_threads=4
python -m <package>.benchmark batch_sizes=[1,8,64] seconds=2

Measure on the machine that will serve, while nothing else runs on it.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli import Config, command
from .refusal import Refusal
from .terminal import bar, python, shown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/benchmark.yaml`."""

    bundle: str
    trust: bool
    num_threads: int
    batch_sizes: list[int] | None
    seconds: float
    num_rounds: int


@command("benchmark", needs=("paths",))
def main(config: Config) -> None:
    from .checks import read_options
    from .serving.runtime import find_bundle
    from .verify import read_checked

    options = read_options(config, Options)
    _check(options)
    folder = find_bundle(options.bundle, Path(config["paths"]["artifact_dir"]))
    log.info("bundle      %s", shown(folder))
    manifest = read_checked(folder)
    formats = _formats(folder, manifest, options)
    sizes = _batch_sizes(manifest, options)
    times = benchmark(folder, formats, sizes, options)
    _report(times, folder, manifest, options, Path(config["paths"]["output_dir"]))


def benchmark(
    folder: Path, formats: Sequence[str], batch_sizes: Sequence[int], options: Options
) -> dict[int, dict[str, list[list[float]]]]:
    """Seconds of each call, as `[batch size][format][round]`; each format has a process of its own, in turns."""
    from .exporters import FORMATS
    from .exporters.timing import Timer
    from .serving.runtime import GOLDEN
    from .speed import EAGER

    names = {name: EAGER if name == "safetensors" else name for name in formats}
    times: dict[int, dict[str, list[list[float]]]] = {
        size: {name: [] for name in names.values()} for size in batch_sizes
    }
    turns = [(size, name) for _ in range(options.num_rounds) for size in batch_sizes for name in formats]
    log.info("measuring   %d formats, for about %.0f s", len(formats), len(turns) * options.seconds)
    with ExitStack() as stack:
        timers = {
            name: stack.enter_context(Timer(name, folder / FORMATS[name].file, folder / GOLDEN, options.num_threads))
            for name in formats
        }
        for name in formats:  # loading is no part of a round
            timers[name].time(1, 0.0)
        for size, name in bar(turns, "measuring"):
            times[size][names[name]].append(timers[name].time(size, options.seconds))
    return times


def _check(options: Options) -> None:
    for name in ("num_threads", "num_rounds"):
        if getattr(options, name) < 1:
            raise Refusal(f"{name}={getattr(options, name)} is too small: give 1 or more.")
    if not 0 < options.seconds < float("inf"):
        raise Refusal(f"seconds={options.seconds} is out of range: give more than 0, as 0.5.")
    if options.batch_sizes == []:
        raise Refusal("batch_sizes=[] measures nothing: leave it out, or give some as [1,64].")


def _formats(folder: Path, manifest: Mapping[str, Any], options: Options) -> list[str]:
    """Eager mode, which is built from the weights, comes first."""
    from .exporters import FORMATS

    written = [format for format in FORMATS.values() if format.file in manifest["files"]]
    if "safetensors" not in {format.name for format in written}:
        raise Refusal(
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
            raise Refusal(f"batch_sizes={size} is out of range: this bundle was verified for 1 to {largest}.")
    return sizes


def _report(
    times: Mapping[int, Mapping[str, list[list[float]]]],
    folder: Path,
    manifest: Mapping[str, Any],
    options: Options,
    run_dir: Path,
) -> None:
    """Table, `benchmark.json` and picture, in the run's directory and in the bundle with its card."""
    from . import speed
    from .exporters.bundle import add_to, write_json
    from .exporters.card import BENCHMARK, BENCHMARK_PICTURE, card
    from .exporters.snippets import PACKAGE

    rows = [row for size, of_size in times.items() for row in speed.rows_of(of_size, size)]
    measured = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": speed.machine(),
        "num_threads": options.num_threads,
        "num_rounds": options.num_rounds,
        "seconds": options.seconds,
        "rows": rows,
    }

    def write(where: Path) -> None:
        write_json(measured, where / BENCHMARK)
        speed.plot(measured, where / BENCHMARK_PICTURE)

    def write_with_card(where: Path) -> None:
        write(where)
        (where / "README.md").write_text(card(manifest, measured), encoding="utf-8")

    speed.print_table(rows)
    write(run_dir)
    log.info("run         %s", shown(run_dir))
    try:
        add_to(folder, manifest, write_with_card)
    except OSError as error:
        reason = error.strerror or error
        raise Refusal(f"{shown(folder)} cannot be written: {reason}; the figures are in {shown(run_dir)}.") from error
    log.info("bundle      %s has the figures in its card", shown(folder))
    log.info("next        read %s", shown(folder / "README.md"))
    log.info("            %s -m %s.verify bundle=%s", python(), PACKAGE, shown(folder))


if __name__ == "__main__":
    main()
