"""Runs a task on the devices that the configuration chose, under the strategy that it chose."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, Strategy

from ..checks import check, check_arguments
from ..cli import Config
from ..refusal import Refusal, nearest
from .devices import Devices, resolve_devices
from .dp import DataParallelStrategy
from .samplers import per_process

Result = TypeVar("Result")


def launch(task: Callable[[Config], Result], config: Config, batch_size: int | None = None) -> Result:
    """`task(config)` in this process, or for ddp on several devices in one process each.

    `batch_size` is what must divide over the processes; evaluation splits any batch.
    """
    devices = devices_of(config)
    check(trainer_section(config, devices), "trainer")
    for name in ("data", "model"):
        check(config.get(name, {}), name)
    build_strategy(config["strategy"], devices)
    if config["strategy"]["name"] != "ddp" or len(devices.indices) == 1:
        return refusing(task, config)
    if batch_size is not None:
        per_process(batch_size, len(devices.indices))
    from .ddp import run_in_processes

    return run_in_processes(task, config, len(devices.indices))


def refusing(task: Callable[[Config], Result], config: Config) -> Result:
    """Lightning's word for options that do not go together becomes ours."""
    try:
        return task(config)
    except MisconfigurationException as error:
        raise Refusal(" ".join(str(error).split())) from error
    except SystemExit as error:  # Lightning's way to end after Ctrl-C, with exit code 1
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise Refusal(" ".join(str(error).split())) from error


def devices_of(config: Config) -> Devices:
    trainer = config["trainer"]
    return resolve_devices(trainer["accelerator"], trainer["devices"], config["strategy"]["name"])


def trainer_section(config: Config, devices: Devices) -> Config:
    """The options of Lightning's Trainer, with the devices that `auto` and null came to."""
    return {**config["trainer"], "accelerator": devices.accelerator, "devices": devices.for_trainer()}


def build_strategy(section: Mapping[str, Any], devices: Devices) -> Strategy | str:
    """The Lightning strategy of a process; the options of `configs/strategy/` beside `name` go to it."""
    name, options = section["name"], {key: value for key, value in section.items() if key != "name"}
    if name not in STRATEGIES:
        raise Refusal(f"strategy.name={name} is no option; {nearest(name, STRATEGIES)}")
    check_arguments(STRATEGIES[name], options, "strategy", known={"devices": devices})
    strategy: Strategy | str = STRATEGIES[name](devices, **options)
    return strategy


def _single(devices: Devices) -> str:
    return "auto"


def _dp(devices: Devices) -> Strategy:
    return DataParallelStrategy(devices.to_torch())


def _ddp(
    devices: Devices, find_unused_parameters: bool, gradient_as_bucket_view: bool, static_graph: bool
) -> Strategy | str:
    if len(devices.indices) == 1:  # nothing to keep in step
        return "auto"
    return DDPStrategy(
        find_unused_parameters=find_unused_parameters,
        gradient_as_bucket_view=gradient_as_bucket_view,
        static_graph=static_graph,
    )


STRATEGIES: dict[str, Callable[..., Strategy | str]] = {"single": _single, "dp": _dp, "ddp": _ddp}
