"""How a configuration runs on this machine; what cannot work is refused here, before any process is started."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import rendezvous
from ..config.command_line import Config
from ..config.validation import check
from ..errors import UserError
from .devices import Devices, resolve_devices
from .samplers import BatchSplit
from .strategies import StrategyOptions, strategy_options

COUNTS_OF_BATCHES = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "overfit_batches",
    "val_check_interval",
)


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
    for name in ("data", "model"):
        check(config.get(name, {}), name)
    for sentence in option_conflicts(config, devices):
        raise UserError(sentence)
    if "model" not in config:
        return Plan(devices, strategy, None, trainer_section(config, devices, 1))
    data = config["data"]
    if "batch_size" not in data:
        raise UserError("'data.batch_size' is missing: do not leave it out.")
    split = BatchSplit.of(data["batch_size"], devices.num_devices, data.get("micro_batch_size"))
    return Plan(devices, strategy, split, trainer_section(config, devices, split.num_steps))


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


def evaluation_steps(data: Mapping[str, Any], devices: Devices) -> int:
    """The parts of a batch that no device finds too large; an evaluation splits any batch."""
    most = data.get("micro_batch_size")
    if isinstance(most, int) and most < 1:
        raise UserError(f"data.micro_batch_size={most} holds no sample: give 1 or more.")
    return -(-data["batch_size"] // (most * devices.num_devices)) if isinstance(most, int) else 1


def option_conflicts(config: Config, devices: Devices) -> Iterator[str]:
    """A sentence for each pair of options that cannot go together."""
    strategy, trainer = config["strategy"], config["trainer"]
    model, micro_batch_size = config.get("model", {}), config.get("data", {}).get("micro_batch_size")
    name, precision = strategy["name"], str(trainer.get("precision"))
    on_gpu, where = devices.accelerator == "gpu", f"and this run is on the {devices.accelerator}"
    clips, in_16_bits = trainer.get("gradient_clip_val") is not None, precision.startswith("16-")
    if name == "dp" and model.get("compile"):
        yield "model.compile=true cannot follow strategy=dp, which copies the network at each step: take ddp."
    if name in ("single", "dp") and trainer.get("sync_batchnorm"):
        yield "trainer.sync_batchnorm=true is for several processes: take strategy=ddp."
    if micro_batch_size == "auto" and (name == "fsdp" or trainer.get("sync_batchnorm")):
        yield "data.micro_batch_size=auto cannot try a network whose ranks wait for each other: give a number."
    if strategy.get("static_graph") and micro_batch_size is not None:
        yield "strategy.static_graph=true cannot go with data.micro_batch_size: torch would stop averaging gradients."
    if name == "fsdp" and clips:
        yield "trainer.gradient_clip_val cannot go with strategy=fsdp: no device has the whole gradient."
    if strategy.get("compression") == "powersgd" and in_16_bits:
        yield "strategy.compression=powersgd keeps an overflow of trainer.precision=16-mixed for ever: take bf16-mixed."
    if clips and in_16_bits and model.get("optimizer", {}).get("fused"):
        sentence = "trainer.gradient_clip_val in 16-mixed needs model.optimizer.fused=false"
        yield f"{sentence}: fused ones take scaled gradients."
    if rendezvous.started() is not None and strategy.get("max_restarts"):
        yield "strategy.max_restarts is for processes that the command starts itself: here others did."
    if name == "fsdp" and not on_gpu:
        yield f"strategy=fsdp needs GPUs, {where}: take strategy=ddp."
    if trainer.get("sync_batchnorm") and not on_gpu:
        yield f"trainer.sync_batchnorm=true needs GPUs, {where}."
    if strategy.get("compression") == "bf16" and not on_gpu:
        yield f"strategy.compression=bf16 needs GPUs, {where}: take fp16."
    if in_16_bits and devices.accelerator == "cpu":
        yield f"trainer.precision={precision} needs a GPU, {where}: take bf16-mixed."
