"""Runs a task on the devices that the configuration chose, under the strategy that it chose."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import Strategy

from ..checks import check, read_options
from ..cli import Config
from ..refusal import Refusal, nearest
from . import ranks
from .ddp import Ddp, DistributedDataParallelStrategy, Fsdp, FullyShardedStrategy
from .devices import Devices, resolve_devices
from .dp import DataParallelStrategy, OneDeviceStrategy
from .samplers import BatchSplit

Result = TypeVar("Result")

COUNTS_OF_BATCHES = ("limit_train_batches", "overfit_batches", "val_check_interval")


@dataclass(frozen=True)
class OneProcess:
    """`strategy=single` and `strategy=dp` have nothing to set."""

    name: str


OPTIONS: dict[str, type] = {"single": OneProcess, "dp": OneProcess, "ddp": Ddp, "fsdp": Fsdp}


def launch(task: Callable[[Config], Result], config: Config) -> Result:
    """`task(config)` in this process, or in one process a device; everything that cannot work is refused before."""
    devices = devices_of(config)
    options = strategy_options(config["strategy"])
    check(trainer_section(config, devices, num_steps=1), "trainer")
    for name in ("data", "model"):
        check(config.get(name, {}), name)
    _refuse_pairs(config, devices)
    started = ranks.started()
    if started is None and (isinstance(options, OneProcess) or devices.num_devices == 1):
        return refusing(task, config)
    from .processes import become_rank, run_in_processes

    if started is None:
        return run_in_processes(task, config, devices.num_devices, options.max_restarts)
    if started.world_size > 1:
        become_rank()
        if started.rank == 0:
            ranks.tell(config)
    return _one_error(task, config)


def _one_error(task: Callable[[Config], Result], config: Config) -> Result:
    """Of ranks that others started: the one that fails first says why, those that miss it then say nothing."""
    try:
        return refusing(task, config)
    except Refusal:
        raise
    except Exception:
        if ranks.is_first_to_say("what went wrong"):
            raise
        raise SystemExit(1) from None


def refusing(task: Callable[[Config], Result], config: Config) -> Result:
    """Lightning's word for options that do not go together becomes ours."""
    try:
        return task(config)
    except MisconfigurationException as error:
        raise Refusal(" ".join(str(error).split())) from error
    except SystemExit as error:  # Lightning's way to end after Ctrl-C, with exit code 1
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise Refusal(" ".join(str(error).split())) from error


def devices_of(config: Config) -> Devices:
    trainer = config["trainer"]
    name = config["strategy"].get("name")
    if name not in OPTIONS:
        raise Refusal(f"strategy.name={name} is no option; {nearest(str(name), OPTIONS)}")
    return resolve_devices(trainer["accelerator"], trainer["devices"], name, trainer.get("num_nodes"))


def strategy_options(section: Mapping[str, Any]) -> Any:
    """The options of the strategy, unknown keys and wrong types refused."""
    schema = OPTIONS[section["name"]]
    for key in section.keys() - schema.__annotations__.keys():
        raise Refusal(f"'strategy.{key}' is no option; {nearest(key, schema.__annotations__, 'strategy')}")
    return read_options(dict(section), schema, "strategy")


def trainer_section(config: Config, devices: Devices, num_steps: int) -> Config:
    """The options of Lightning's Trainer, with what was derived from others.

    `num_steps` is the number of micro-batches of a batch: what counts batches for the user, counts those for Lightning.
    """
    section = dict(config["trainer"])
    if "accumulate_grad_batches" in section:
        raise Refusal("'trainer.accumulate_grad_batches' follows from 'data.micro_batch_size': set that one.")
    for name in COUNTS_OF_BATCHES:
        if isinstance(section.get(name), int):
            section[name] *= num_steps
        elif section.get(name) and num_steps > 1:
            raise Refusal(f"trainer.{name}={section[name]} may cut a batch in two with micro-batches: give a number.")
    derived = {"accelerator": devices.accelerator, "devices": devices.for_trainer(), "num_nodes": devices.num_nodes}
    return {**section, **derived, "accumulate_grad_batches": num_steps}


def batch_split(data: Mapping[str, Any], devices: Devices) -> BatchSplit:
    return BatchSplit.of(data["batch_size"], devices.num_devices, data.get("micro_batch_size"))


def evaluation_steps(data: Mapping[str, Any], devices: Devices) -> int:
    """Parts of a batch that no device finds too large; evaluation splits any batch, whatever it leaves over."""
    most = data.get("micro_batch_size")
    return -(-data["batch_size"] // (most * devices.num_devices)) if isinstance(most, int) else 1


def _refuse_pairs(config: Config, devices: Devices) -> None:
    """What cannot go together, before any process is started."""
    strategy, precision = config["strategy"], str(config["trainer"].get("precision"))
    started = ranks.started()
    if strategy["name"] == "dp" and config.get("model", {}).get("compile"):
        raise Refusal("model.compile=true cannot follow strategy=dp, which copies the network at each step: take ddp.")
    if strategy.get("compression") == "bf16" and devices.accelerator != "gpu":
        raise Refusal("strategy.compression=bf16 needs GPUs, which add such numbers on their way: take fp16.")
    if strategy["name"] == "fsdp" and devices.accelerator != "gpu":
        raise Refusal(f"strategy=fsdp needs GPUs, and this run is on the {devices.accelerator}: take strategy=ddp.")
    if strategy["name"] == "fsdp" and config.get("data", {}).get("micro_batch_size") == "auto":
        raise Refusal("data.micro_batch_size=auto cannot try a network that strategy=fsdp has cut: give a number.")
    if config["trainer"].get("sync_batchnorm") and devices.accelerator != "gpu":
        raise Refusal(f"trainer.sync_batchnorm=true needs GPUs, and this run is on the {devices.accelerator}.")
    if precision.startswith("16-") and devices.accelerator == "cpu":
        raise Refusal(f"trainer.precision={precision} needs a GPU: take bf16-mixed on the CPU.")
    if started is not None and strategy.get("max_restarts"):
        raise Refusal(
            f"strategy.max_restarts={strategy['max_restarts']} is for processes that the command starts itself: "
            f"here {started.starter} does."
        )
    if "batch_size" in config.get("data", {}) and "model" in config:  # evaluation splits any batch
        trainer_section(config, devices, batch_split(config["data"], devices).num_steps)


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
