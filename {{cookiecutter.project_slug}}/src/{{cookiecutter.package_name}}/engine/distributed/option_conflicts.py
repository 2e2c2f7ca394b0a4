"""Options that cannot go together."""

from .. import rendezvous
from ..config.command_line import Config
from ..errors import UserError
from .devices import Devices


def refuse_pairs(config: Config, devices: Devices) -> None:
    """Before any process is started."""
    strategy, trainer, data = config["strategy"], config["trainer"], config.get("data", {})
    name, micro_batch_size = strategy["name"], data.get("micro_batch_size")
    precision, started = str(trainer.get("precision")), rendezvous.started()
    where = f"and this run is on the {devices.accelerator}"
    pairs = {
        "model.compile=true cannot follow strategy=dp, which copies the network at each step: take ddp.": (
            name == "dp" and config.get("model", {}).get("compile")
        ),
        "trainer.sync_batchnorm=true is for several processes: take strategy=ddp.": (
            name in ("single", "dp") and trainer.get("sync_batchnorm")
        ),
        "data.micro_batch_size=auto cannot try a network whose ranks wait for each other: give a number.": (
            micro_batch_size == "auto" and (name == "fsdp" or trainer.get("sync_batchnorm"))
        ),
        "strategy.static_graph=true cannot go with data.micro_batch_size: torch would stop averaging gradients.": (
            strategy.get("static_graph") and micro_batch_size is not None
        ),
        "trainer.gradient_clip_val cannot go with strategy=fsdp: no device has the whole gradient.": (
            name == "fsdp" and trainer.get("gradient_clip_val") is not None
        ),
        "strategy.compression=powersgd keeps an overflow of trainer.precision=16-mixed for ever: take bf16-mixed.": (
            strategy.get("compression") == "powersgd" and precision.startswith("16-")
        ),
        "trainer.gradient_clip_val in 16-mixed needs model.optimizer.fused=false: fused ones take scaled gradients.": (
            trainer.get("gradient_clip_val") is not None
            and precision.startswith("16-")
            and config.get("model", {}).get("optimizer", {}).get("fused")
        ),
        "strategy.max_restarts is for processes that the command starts itself: here others did.": (
            started is not None and strategy.get("max_restarts")
        ),
        f"strategy=fsdp needs GPUs, {where}: take strategy=ddp.": name == "fsdp" and devices.accelerator != "gpu",
        f"trainer.sync_batchnorm=true needs GPUs, {where}.": (
            trainer.get("sync_batchnorm") and devices.accelerator != "gpu"
        ),
        f"strategy.compression=bf16 needs GPUs, {where}: take fp16.": (
            strategy.get("compression") == "bf16" and devices.accelerator != "gpu"
        ),
        f"trainer.precision={precision} needs a GPU, {where}: take bf16-mixed.": (
            precision.startswith("16-") and devices.accelerator == "cpu"
        ),
    }
    for sentence, is_so in pairs.items():
        if is_so:
            raise UserError(sentence)
