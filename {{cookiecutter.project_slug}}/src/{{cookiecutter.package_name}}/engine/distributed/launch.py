"""Runs a task on the devices that the configuration chose, under the strategy that it chose."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import Strategy

from .. import rendezvous
from ..config.command_line import Config
from ..config.validation import check, read_options
from ..errors import UserError, lost_worker, nearest, of_files
from .ddp import Ddp, DistributedDataParallelStrategy, Fsdp, FullyShardedStrategy
from .devices import Devices, resolve_devices
from .dp import DataParallelStrategy, OneDeviceStrategy
from .option_conflicts import refuse_pairs
from .samplers import BatchSplit

Result = TypeVar("Result")

COUNTS_OF_BATCHES = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "overfit_batches",
    "val_check_interval",
)


@dataclass(frozen=True)
class OneProcess:
    """`strategy=single` and `strategy=dp` have nothing to set."""

    name: str


OPTIONS: dict[str, type] = {"single": OneProcess, "dp": OneProcess, "ddp": Ddp, "fsdp": Fsdp}


def launch(task: Callable[[Config], Result], config: Config) -> Result:
    """`task(config)` in this process, or in one process a device; everything that cannot work is refused before."""
    refuse_mistakes(config)
    devices, options, started = devices_of(config), strategy_options(config["strategy"]), rendezvous.started()
    if started is None and (isinstance(options, OneProcess) or devices.num_devices == 1):
        return refusing(task, config)
    from .launcher import become_rank, run_in_processes

    if started is None:
        return run_in_processes(task, config, devices.num_devices, options.max_restarts)
    if started.world_size > 1:
        become_rank(started.per_node)
        if started.rank == 0:
            rendezvous.tell(config)
    return _one_error(task, config)


def refuse_mistakes(config: Config) -> None:
    """What cannot work on this machine, or with what started this process."""
    rendezvous.refuse_restarts_that_hang()
    devices = devices_of(config)
    strategy_options(config["strategy"])
    check(trainer_section(config, devices, num_steps=1), "trainer")
    for name in ("data", "model"):
        check(config.get(name, {}), name)
    refuse_pairs(config, devices)
    data = config.get("data", {})
    if "batch_size" in data and "model" in config:  # evaluation splits any batch
        trainer_section(config, devices, batch_split(data, devices).num_steps)


def _one_error(task: Callable[[Config], Result], config: Config) -> Result:
    """Of ranks that others started: the one that fails first says why, those that miss it then say nothing."""
    try:
        return refusing(task, config)
    except UserError:
        raise
    except Exception:
        if rendezvous.is_first_to_say("what went wrong"):
            raise
        raise SystemExit(1) from None


def refusing(task: Callable[[Config], Result], config: Config) -> Result:
    """Lightning's word for options that do not go together becomes ours."""
    try:
        return task(config)
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except OSError as error:
        if (fault := of_files(error, Path(config["paths"]["output_dir"]))) is None:
            raise
        raise fault from error
    except SystemExit as error:  # Lightning's way to end after Ctrl-C, with exit code 1
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    except RuntimeError as error:
        if (lost := lost_worker(error)) is not None:  # the signal of its end may come at any moment
            raise lost from error
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise UserError(" ".join(str(error).split())) from error


def devices_of(config: Config) -> Devices:
    trainer = config["trainer"]
    name = config["strategy"].get("name")
    if name not in OPTIONS:
        raise UserError(f"strategy.name={name} is no option; {nearest(str(name), OPTIONS)}")
    return resolve_devices(trainer["accelerator"], trainer["devices"], name, trainer.get("num_nodes"))


def strategy_options(section: Mapping[str, Any]) -> Any:
    """The options of the strategy, unknown keys and wrong types refused."""
    schema = OPTIONS[section["name"]]
    for key in section.keys() - schema.__annotations__.keys():
        raise UserError(f"'strategy.{key}' is no option; {nearest(key, schema.__annotations__, 'strategy')}")
    return read_options(dict(section), schema, "strategy")


def trainer_section(config: Config, devices: Devices, num_steps: int) -> Config:
    """The options of Lightning's Trainer, with what was derived from others.

    `num_steps` is the number of micro-batches of a batch: what counts batches for the user, counts those for Lightning.
    """
    section = dict(config["trainer"])
    if "accumulate_grad_batches" in section:
        raise UserError("'trainer.accumulate_grad_batches' follows from 'data.micro_batch_size': set that one.")
    splits = num_steps > 1 or config.get("data", {}).get("micro_batch_size") == "auto"
    for name in COUNTS_OF_BATCHES:
        if isinstance(section.get(name), int):
            section[name] *= num_steps
        elif section.get(name) not in (None, 0.0, 1.0) and splits:
            raise UserError(f"trainer.{name}={section[name]} may cut a batch in two with micro-batches: give a number.")
    derived = {"accelerator": devices.accelerator, "devices": devices.for_trainer(), "num_nodes": devices.num_nodes}
    return {**section, **derived, "accumulate_grad_batches": num_steps}


def batch_split(data: Mapping[str, Any], devices: Devices) -> BatchSplit:
    return BatchSplit.of(data["batch_size"], devices.num_devices, data.get("micro_batch_size"))


def evaluation_steps(data: Mapping[str, Any], devices: Devices) -> int:
    """Parts of a batch that no device finds too large; evaluation splits any batch, whatever it leaves over."""
    most = data.get("micro_batch_size")
    if isinstance(most, int) and most < 1:
        raise UserError(f"data.micro_batch_size={most} holds no sample: give 1 or more.")
    return -(-data["batch_size"] // (most * devices.num_devices)) if isinstance(most, int) else 1


def build_strategy(section: Mapping[str, Any], devices: Devices) -> Strategy:
    """The Lightning strategy of a process."""
    options = strategy_options(section)
    if isinstance(options, OneProcess) and options.name == "dp":
        return DataParallelStrategy(devices.to_torch())
    if isinstance(options, OneProcess) or devices.num_devices == 1:
        return OneDeviceStrategy(devices.to_torch()[0])
    if isinstance(options, Fsdp):
        return FullyShardedStrategy(options.min_num_weights, options.cpu_offload)
    return DistributedDataParallelStrategy(
        options.compression,
        options.powersgd_rank,
        options.powersgd_start_step,
        find_unused_parameters=options.find_unused_parameters,
        gradient_as_bucket_view=options.gradient_as_bucket_view,
        static_graph=options.static_graph,
        bucket_cap_mb=options.bucket_cap_mb,
    )
