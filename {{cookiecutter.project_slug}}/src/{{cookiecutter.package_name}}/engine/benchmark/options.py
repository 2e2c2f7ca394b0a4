"""The options of the command `benchmark`."""

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError


@dataclass(frozen=True)
class Options:
    """The plain options of `benchmark.yaml`."""

    strategies: list[Literal["single", "dp", "ddp", "fsdp"]]
    devices: list[int] | None
    bundle: str | None
    trust: bool
    sign: str | None
    num_threads: int
    batch_sizes: list[int] | None
    seconds: float
    num_rounds: int

    def __post_init__(self) -> None:
        for name in ("num_threads", "num_rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is too small: give 1 or more.")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds={self.seconds} is out of range: give more than 0, as 0.5.")
        for name, example in (("batch_sizes", "[1,64]"), ("devices", "[1,2]"), ("strategies", "[single,ddp]")):
            if getattr(self, name) == []:
                raise UserError(f"{name}=[] measures nothing: leave it out, or give some as {example}.")
        if self.devices is not None and min(self.devices) < 1:
            raise UserError(f"devices={self.devices} are numbers of devices: give 1 or more.")
        if self.bundle is None and (self.trust or self.sign or self.batch_sizes):
            raise UserError("trust, sign and batch_sizes are for the formats of a bundle: add bundle=latest.")
        if self.bundle is not None and self.devices is not None:
            raise UserError("devices is for training: leave bundle out, or devices.")
