"""Measures training: ordinary runs of the command `train` under each strategy on each number of devices, in turns."""

import json
import logging
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.core.override_parser.types import Quote, QuotedString

from .. import rendezvous
from ..config import PACKAGE
from ..config.command_line import Config, config_dirs, given_options, given_options_except
from ..console import bar, python, shown, write_json
from ..distributed.devices import resolve_devices
from ..errors import UserError
from ..runs.run_record import versions
from .options import Options
from .report import circumstances, plot, print_table, speedup

OWN = (*Options.__annotations__, "task_name", "hydra")  # options that `train` does not have, or not alike
COLUMNS = {
    "strategy": "{strategy}",
    "devices": "{num_devices}",
    "samples/s": "{samples_per_second:,.0f}",
    "epoch (s)": "{epoch_seconds:.3f}",
    "MiB": "{peak_memory_mib:,.0f}",
    "speedup": "{speedup:.2f}",
    "rounds": "{speedup_range[0]:.2f}-{speedup_range[1]:.2f}",
    "efficiency": "{efficiency:.2f}",
}
log = logging.getLogger(__name__)


class Case(NamedTuple):
    """What is compared with others: a strategy on so many devices."""

    strategy: str
    num_devices: int

    def __str__(self) -> str:
        return f"strategy={self.strategy} on {self.num_devices}"

    @property
    def options(self) -> list[str]:
        return [f"strategy={self.strategy}", f"trainer.devices={self.num_devices}"]


BASELINE = Case("single", 1)


def measure_training(config: Config, options: Options, run_dir: Path) -> None:
    """Writes the figures and the picture into the run's directory; what cannot run here is named with the reason."""
    refuse_mistakes(config)
    cases, not_measured = choose_cases(config["trainer"]["accelerator"], options)
    log.info("measuring   %d rounds of %d trainings", options.num_rounds, len(cases))
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for case in bar(cases * options.num_rounds, "measuring"):
        try:
            if case in runs:
                runs[case].append(run_training(case))
        except UserError as failure:
            if case == BASELINE:
                raise
            not_measured[str(case)] = str(failure)
            del runs[case]
    rows = to_rows(runs, config["data"]["batch_size"])
    gpus = [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())]
    measured = {
        **circumstances(),
        "gpus": gpus,
        "versions": versions(),
        "network": config["model"]["net"]["_target_"].rsplit(".", 1)[-1],
        "precision": str(config["trainer"]["precision"]),
        "batch_size": config["data"]["batch_size"],
        "num_rounds": options.num_rounds,
        "rows": rows,
        "not_measured": not_measured,
    }
    write_json(measured, run_dir / "benchmark.json")
    where = f"{len(gpus)} x {gpus[0]}" if gpus else measured["machine"]["processor"]
    title = "{network}, batch {batch_size}, {precision}, ".format(**measured) + where
    text = "{samples_per_second:,.0f}: {speedup:.2f} x, efficiency {efficiency:.2f}"
    name, axis = "{strategy} on {num_devices}", "samples a second, validation included, and the range of the rounds"
    picture = plot({"": rows}, name, "samples_per_second", "samples_per_second_range", text, axis, title)
    picture.savefig(run_dir / "benchmark.png", dpi=120)
    print_table(rows, COLUMNS)
    for case_name, reason in not_measured.items():
        log.info("not measured: %s: %s", case_name, reason)
    log.info("run         %s has benchmark.json and benchmark.png", shown(run_dir))
    fastest = list(runs)[int(np.argmax([row["samples_per_second"] for row in rows]))]
    options_of_fastest = shlex.join([*fastest.options, *given_options_except(*OWN)])
    log.info("next        %s -m %s train %s", python(), PACKAGE, options_of_fastest)


def refuse_mistakes(config: Config) -> None:
    started = rendezvous.started()
    if started is not None and started.world_size > 1:
        raise UserError(f"benchmark starts its own processes: start it without {started.starter}.")
    if config["trainer"].get("devices") is not None:
        raise UserError("trainer.devices is what benchmark changes: give devices=[1,2], say, in its place.")
    if re.search(r"(^| )strategy=", given_options("strategy")):
        raise UserError("strategy is what benchmark changes: give strategies=[single,ddp], say, in its place.")
    if config["resume"] is not None:
        raise UserError(f"resume={config['resume']} is for a training: benchmark begins each of its own anew.")


def choose_cases(accelerator: str, options: Options) -> tuple[list[Case], dict[str, str]]:
    """Returns the cases, of which the first is what the others are compared with, and why others are left out."""
    numbers = options.devices
    if numbers is None:
        most = resolve_devices(accelerator, None, "ddp").num_devices
        numbers = [*(2**power for power in range(1, most.bit_length())), max(most, 2)]
    others = [Case(name, number) for number in sorted(set(numbers)) for name in options.strategies if name != "single"]
    alone = {str(case): "on one device it is strategy=single." for case in others if case.num_devices == 1}
    return list(dict.fromkeys([BASELINE, *(case for case in others if case.num_devices > 1)])), alone


def run_training(case: Case) -> dict[str, Any]:
    """Trains in a process of its own, and returns what the callback `EpochTimes` wrote; raises why it failed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        logger = [] if given_options("logger") else ["logger=csv"]  # a tracker would list runs that nobody looks for
        callback = "++callbacks.epoch_times._target_=${engine:training.callbacks.monitoring.EpochTimes}"
        log_dir = f"paths.log_dir={QuotedString(folder, Quote.double).with_quotes()}"
        own = [*case.options, "test=false", "rehearse_export=false", callback, log_dir]
        command = [sys.executable, "-m", PACKAGE, "train", *config_dirs(), *logger, *given_options_except(*OWN), *own]
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if process.returncode:  # the sentence of a refusal, or the last line of a traceback
            refusals = re.findall(r"^error: (.*)$", process.stdout, re.MULTILINE)
            lines = process.stdout.strip().splitlines() or [f"it ended with exit code {process.returncode}."]
            raise UserError([*refusals, lines[-1]][0])
        found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in Path(folder).rglob("epoch_times.json")]
    if not found or len(found[0]["epoch_seconds"]) < 2:
        raise UserError("trainer.max_epochs=2 or more is needed, because the first epoch is not counted.")
    return found[0]


def to_rows(runs: Mapping[Case, Sequence[Mapping[str, Any]]], batch_size: int) -> list[dict[str, Any]]:
    """Returns a row for each case; the first epoch of each run, which warms it up, is left out."""
    rows = []
    seconds = {case: [float(np.median(run["epoch_seconds"][1:])) for run in runs[case]] for case in runs}
    for case, epochs in seconds.items():
        ratios, num_samples = speedup(seconds[BASELINE], epochs), runs[case][0]["steps_per_epoch"] * batch_size
        median = float(np.median(epochs))
        figures = {
            "epoch_seconds": median,
            "samples_per_second": num_samples / median,
            "samples_per_second_range": [num_samples / max(epochs), num_samples / min(epochs)],
            "peak_memory_mib": max(run["peak_memory_mib"] for run in runs[case]),
            "efficiency": ratios["speedup"] / case.num_devices,
        }
        rows.append({**case._asdict(), **figures, **ratios})
    return rows
