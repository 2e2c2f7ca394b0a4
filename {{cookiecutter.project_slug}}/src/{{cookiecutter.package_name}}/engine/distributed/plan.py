"""How a configuration runs on this machine; what cannot work is refused here, before any process is started."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import rendezvous
from ..config.command_line import Config
from ..config.validation import check, parameters_of
from ..errors import UserError
from .devices import Devices, resolve_devices
from .strategies import StrategyOptions, strategy_options

COUNTS_OF_BATCHES = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "overfit_batches",
    "val_check_interval",
    "fast_dev_run",
)


@dataclass(frozen=True)
class BatchSplit:
    """How the `batch_size` samples of an optimiser step are split: over `num_devices`, each in `num_steps` parts.

    `batch_size` is None where only the DataModule's loader knows it; then `num_steps` is 1.
    """

    batch_size: int | None
    num_devices: int
    num_steps: int
    is_auto: bool = False  # whether the callback `MicroBatchFinder` chooses another number of parts

    @classmethod
    def of(cls, data: Mapping[str, Any], num_devices: int) -> "BatchSplit":
        """Reads `batch_size` and `micro_batch_size`, the most that a device holds at once, of the section `data`."""
        micro_batch_size, batch_size = data.get("micro_batch_size"), data.get("batch_size")
        if batch_size is None and "batch_size" in (taken := parameters_of(data["_target_"], "data")):
            default = taken["batch_size"].default
            batch_size = default if isinstance(default, int) else None
        if not (micro_batch_size in (None, "auto") or type(micro_batch_size) is int):
            raise UserError(f"data.micro_batch_size={micro_batch_size} does not fit: it takes a number, auto or null.")
        if micro_batch_size is not None and batch_size is None:
            raise UserError("data.micro_batch_size needs the number of samples of a whole batch: give data.batch_size.")
        return cls(batch_size, num_devices, 1, micro_batch_size == "auto").cut(micro_batch_size)

    def cut(self, micro_batch_size: object) -> "BatchSplit":
        """The split in which a device holds at most `micro_batch_size` samples at once, if that is a number."""
        if self.batch_size is None or not isinstance(micro_batch_size, int):
            return self
        if micro_batch_size < 1:
            raise UserError(f"data.micro_batch_size={micro_batch_size} holds no sample: give 1 or more.")
        num_steps = max(1, -(-self.batch_size // (micro_batch_size * self.num_devices)))
        return replace(self, num_steps=num_steps, is_auto=False)

    @property
    def micro_batch_size(self) -> int:
        """The samples that a device holds at once, where parts differ the larger ones."""
        return -(-(self.batch_size or 1) // (self.num_devices * self.num_steps))

    def __str__(self) -> str:
        devices = f"{self.num_devices} {'device' if self.num_devices == 1 else 'devices'}"
        if self.batch_size is None:
            return f"batches of the DataModule's own loader, over {devices}"
        steps = f" x {self.num_steps} steps" if self.num_steps > 1 else ""
        smallest = self.batch_size // (self.num_devices * self.num_steps)
        size = f"{smallest} to {self.micro_batch_size}" if smallest < self.micro_batch_size else str(smallest)
        auto = ", or as much of it at once as fits" if self.is_auto else ""
        return f"batch {self.batch_size} = {devices}{steps} x {size}{auto}"


@dataclass(frozen=True)
class Plan:
    """The devices, the strategy, how a batch is split over the devices, and what Lightning's Trainer receives."""

    devices: Devices
    strategy: StrategyOptions
    split: BatchSplit | None  # None for an evaluation, which can split any batch
    trainer: Config

    @property
    def num_processes(self) -> int:
        return 1 if self.strategy.name in ("single", "dp") else self.devices.num_devices


def make_plan(config: Config) -> Plan:
    """Raises `UserError` for options that cannot work here, or not together."""
    rendezvous.refuse_restarts_that_hang()
    strategy, trainer = strategy_options(config["strategy"]), config["trainer"]
    devices = resolve_devices(trainer["accelerator"], trainer["devices"], strategy.name, trainer.get("num_nodes"))
    check(trainer_section(config, devices, num_steps=1), "trainer")
    check(config.get("model", {}), "model")
    check(data_section(config.get("data", {})), "data")
    for sentence in option_conflicts(config, devices):
        raise UserError(sentence)
    if "model" not in config:
        return Plan(devices, strategy, None, trainer_section(config, devices, 1))
    split = BatchSplit.of(config["data"], devices.num_devices)
    return Plan(devices, strategy, split, trainer_section(config, devices, split.num_steps))


def data_section(section: Config) -> Config:
    """The section `data` without those options of the engine that the DataModule does not take."""
    taken = parameters_of(section["_target_"], "data") if "_target_" in section else {}
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    unwanted = {"micro_batch_size"} if takes_all else {"batch_size", "micro_batch_size"}
    return {name: value for name, value in section.items() if name in taken or name not in unwanted}


def trainer_section(config: Config, devices: Devices, num_steps: int) -> Config:
    """The options of Lightning's Trainer, with what was derived from others.

    A user counts whole batches, and Lightning counts the `num_steps` micro-batches of each.
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


def option_conflicts(config: Config, devices: Devices) -> Iterator[str]:
    """A sentence for each pair of options that cannot go together."""
    strategy, trainer = config["strategy"], config["trainer"]
    model, micro_batch_size = config.get("model", {}), config.get("data", {}).get("micro_batch_size")
    name, precision = strategy["name"], str(trainer.get("precision"))
    on_gpu, where = devices.accelerator == "gpu", f"and this run is on the {devices.accelerator}"
    clips, in_16_bits = trainer.get("gradient_clip_val") is not None, precision.startswith("16-")
    if name == "dp" and config.get("compile"):
        yield "compile=true cannot follow strategy=dp, which copies the network at each step: take ddp."
    if name == "dp" and trainer.get("sync_batchnorm"):
        yield "trainer.sync_batchnorm=true is for several processes, and strategy=dp is one: take strategy=ddp."
    if micro_batch_size == "auto" and (name == "fsdp" or trainer.get("sync_batchnorm")):
        yield "data.micro_batch_size=auto cannot try a network whose ranks wait for each other: give a number."
    if strategy.get("static_graph") and micro_batch_size is not None:
        yield "strategy.static_graph=true cannot go with data.micro_batch_size: torch would stop averaging gradients."
    if config.get("ema_decay") is not None and precision in ("16-true", "bf16-true"):
        yield f"ema_decay changes weights by less than trainer.precision={precision} can hold: take bf16-mixed."
    if name == "fsdp" and in_16_bits:
        yield f"trainer.precision={precision} scales gradients, which strategy=fsdp cannot: take bf16-mixed."
    if strategy.get("compression") == "powersgd" and in_16_bits:
        yield "strategy.compression=powersgd keeps an overflow of trainer.precision=16-mixed for ever: take bf16-mixed."
    if clips and in_16_bits and model.get("optimizer", {}).get("fused"):
        sentence = "trainer.gradient_clip_val in 16-mixed needs model.optimizer.fused=false"
        yield f"{sentence}: fused ones take scaled gradients."
    if rendezvous.started() is not None and strategy.get("max_restarts"):
        yield "strategy.max_restarts is for processes that the command starts itself: here others did."
    if strategy.get("compression") == "bf16" and not on_gpu:
        yield f"strategy.compression=bf16 needs GPUs, {where}: take fp16."
    if in_16_bits and devices.accelerator == "cpu":
        yield f"trainer.precision={precision} needs a GPU, {where}: take bf16-mixed."
