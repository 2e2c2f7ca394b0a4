"""Measures training: `strategies` on `devices`, each beside the loop written by hand, all of them in turns."""

from __future__ import annotations

import copy
import datetime
import logging
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import rendezvous
from ..config import PACKAGE
from ..config.command_line import Config, typed
from ..config.instantiation import build
from ..console import bar, python, shown, write_json
from ..distributed.devices import resolve_devices
from ..distributed.launch import batch_split, devices_of
from ..errors import UserError
from ..runs.provenance import versions
from . import strategies
from .loop import PRECISIONS
from .machine import gpus, machine
from .turns import Case, CaseFailure

if TYPE_CHECKING:
    from .benchmark import Options

OF_TRAIN: Config = {"tags": [], "resume": None, "ckpt_path": None, "lr_scaling": "none", "test": False}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A turn of any case: `num_epochs` epochs, of each at most so many batches."""

    num_epochs: int
    train_batches: int
    val_batches: int
    of_epoch: float  # the part of a whole epoch that one of them is
    num_samples: int  # of training, in a turn

    @classmethod
    def of(cls, config: Config, num_steps: int) -> Plan:
        datamodule = build(config["data"], "data")
        in_epoch, in_val = len(datamodule.train_dataloader()), len(datamodule.val_dataloader())
        train_batches = min(in_epoch, num_steps)
        of_epoch = train_batches / in_epoch
        num_epochs = -(-num_steps // train_batches)
        samples = num_epochs * train_batches * config["data"]["batch_size"]
        return cls(num_epochs, train_batches, max(1, round(in_val * of_epoch)), of_epoch, samples)


def measure_training(config: Config, options: Options, run_dir: Path) -> None:
    started = rendezvous.started()
    if started is not None and started.world_size > 1:
        raise UserError(f"benchmark starts its own processes: start it without {started.starter}.")
    _refuse_what_is_measured(config)
    chosen, left_out = _choose(config, options)
    plan = Plan.of(config, options.num_steps)
    num_steps, batch_size = plan.num_epochs * plan.train_batches, config["data"]["batch_size"]
    sentence = "measuring   %d x %d steps of %d samples of each case, beside a loop written by hand"
    log.info(sentence, options.num_rounds, num_steps, batch_size)
    rows: list[dict[str, Any]] = []
    for num_devices in sorted({number for _, number in chosen if number > 1} or {1}):
        names = [name for name, number in chosen if number == num_devices and name != "single"]
        turns, reasons = _turns(config, options, plan, names, num_devices)
        left_out.update(reasons)
        rows += strategies.rows_of(turns, plan.num_samples, plan.num_epochs * plan.of_epoch)
    rows = strategies.once(rows, with_single="single" in options.strategies or len(chosen) == 1)
    measured = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {**machine(), "gpus": gpus()},
        "versions": versions(),
        "network": config["model"]["net"]["_target_"].rsplit(".", 1)[-1],
        "precision": str(config["trainer"]["precision"]),
        "batch_size": batch_size,
        "num_rounds": options.num_rounds,
        "steps_of_a_round": num_steps,
        "rows": rows,
        "not_measured": left_out,
    }
    write_json(measured, run_dir / "benchmark.json")
    strategies.plot(measured, run_dir / "benchmark.png")
    strategies.print_table(rows)
    for case, reason in left_out.items():
        log.info("not measured: %s: %s", case, reason)
    log.info("run         %s has benchmark.json and benchmark.png", shown(run_dir))
    words = (f"strategy={strategies.fastest(rows)}", typed("data", "model", "trainer", "callbacks", "logger", "seed"))
    log.info("next        %s -m %s train %s", python(), PACKAGE, " ".join(filter(None, words)))


def _refuse_what_is_measured(config: Config) -> None:
    if config["trainer"].get("devices") is not None:
        raise UserError("trainer.devices is what benchmark changes: give devices=[1,2], say, in its place.")
    if config["data"].get("micro_batch_size") is not None:
        raise UserError("data.micro_batch_size is not for benchmark: its hand-written loop takes a batch as a whole.")
    precision = config["trainer"]["precision"]
    if str(precision) not in PRECISIONS:
        raise UserError(f"trainer.precision={precision} is none of the hand-written loop's: {', '.join(PRECISIONS)}.")
    devices_of({**config, "strategy": config["strategy"]["single"]})  # an accelerator that is not there


def _choose(config: Config, options: Options) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """Pairs of a strategy and a number of devices; and of those that cannot be measured here, why."""
    numbers = options.devices or _numbers_of_devices(config)
    chosen, left_out = [("single", 1)], {}
    for name in dict.fromkeys(options.strategies):
        if name == "single":
            continue
        for number in sorted(set(numbers)):
            case = str(strategies.Key(name, number))
            if number == 1:
                if options.devices:
                    left_out[case] = "on one device it is strategy=single."
                continue
            try:
                devices = resolve_devices(config["trainer"]["accelerator"], number, name)
                batch_split(config["data"], devices)
            except UserError as refusal:
                left_out[case] = str(refusal)
            else:
                chosen.append((name, number))
    return chosen, left_out


def _numbers_of_devices(config: Config) -> list[int]:
    devices = resolve_devices(config["trainer"]["accelerator"], None, "ddp")
    if devices.accelerator == "cpu":
        return [1, 2]
    powers = [2**power for power in range(devices.num_devices.bit_length())]
    return [*powers, devices.num_devices] if devices.num_devices > 1 else [1, 2]


def _turns(
    config: Config, options: Options, plan: Plan, names: list[str], num_devices: int
) -> tuple[dict[strategies.Key, list[dict[str, float]]], dict[str, str]]:
    """`[case][round]`, one device first; the first turn of each warms it up and is thrown away."""
    keys = [strategies.Key("loop", 1), strategies.Key("single", 1)]
    if "ddp" in names:
        keys.append(strategies.Key("ddp loop", num_devices))
    keys += [strategies.Key(name, num_devices) for name in names]
    turns: dict[strategies.Key, list[dict[str, float]]] = {}
    left_out = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases = {}
        for key in keys:
            of_case = _config_of(config, plan, key, folder / str(key).replace(" ", "-"))
            settings = {
                "num_epochs": plan.num_epochs,
                "train_batches": plan.train_batches,
                "val_batches": plan.val_batches,
                "by_hand": key.by_hand,
            }
            num_ranks = 1 if key.name == "dp" else key.num_devices
            cases[key] = stack.enter_context(Case(of_case, num_ranks, **settings))
        for key, case in bar(list(cases.items()), "starting"):
            try:
                case.start()
                case.turn()
            except CaseFailure as failure:
                if key.num_devices == 1:
                    raise
                left_out[str(key)] = str(failure)
            else:
                turns[key] = []
        rounds = [key for _ in range(options.num_rounds) for key in turns]
        for key in bar(rounds, f"measuring on {num_devices}"):
            turns[key].append(cases[key].turn())
    return turns, left_out


def _config_of(config: Config, plan: Plan, key: strategies.Key, folder: Path) -> Config:
    """The options of `train` for one case; what it writes goes into a folder of its own."""
    folder.mkdir()
    of_case = _moved(copy.deepcopy(config), config["paths"]["output_dir"], str(folder))
    assert isinstance(of_case, dict)
    strategy = key.name.removesuffix("loop").strip() or "single"
    of_case["strategy"] = config["strategy"][strategy]
    limits = {"limit_train_batches": plan.train_batches, "limit_val_batches": plan.val_batches}
    of_case["trainer"] |= {"devices": key.num_devices, "max_epochs": -1, **limits}
    of_case["callbacks"] = {**(of_case.get("callbacks") or {}), "early_stopping": None}
    return {**of_case, **OF_TRAIN, "base_batch_size": 1}


def _moved(value: Any, old: str, new: str) -> Any:
    """The same configuration with another run directory."""
    if isinstance(value, dict):
        return {key: _moved(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, old, new) for inner in value]
    within = isinstance(value, str) and f"{value}{os.sep}".startswith(f"{old}{os.sep}")
    return new + value.removeprefix(old) if within else value
