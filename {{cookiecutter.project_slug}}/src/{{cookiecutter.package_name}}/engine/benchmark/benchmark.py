"""Measure training under each strategy side by side; or a bundle, each format beside eager mode.

    python -m <package> benchmark
    python -m <package> benchmark strategies=[single,ddp] devices=[2,4] model=mlp trainer.precision=bf16-mixed
    python -m <package> benchmark bundle=latest
    python -m <package> benchmark bundle=artifacts/<name>/<version> trust=true batch_sizes=[1,8,64]

Measure while nothing else runs on the machine, and a bundle on the machine that will serve it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config.command_line import Config, command
from ..config.validation import read_options
from ..errors import UserError


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/benchmark.yaml`."""

    strategies: list[Literal["single", "dp", "ddp", "fsdp"]]
    devices: list[int] | None
    bundle: str | None
    trust: bool
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
        if self.bundle is None and (self.trust or self.batch_sizes):
            raise UserError("trust and batch_sizes are for the formats of a bundle: add bundle=latest.")
        if self.bundle is not None and self.devices is not None:
            raise UserError("devices is for training: leave bundle out, or devices.")


@command("benchmark", needs=("data", "model", "trainer", "strategy", "paths"))
def main(config: Config) -> None:
    options, run_dir = read_options(config, Options), Path(config["paths"]["output_dir"])
    if options.bundle is None:
        from .training import measure_training

        measure_training(config, options, run_dir)
    else:
        from .bundles import measure_bundle

        measure_bundle(options, Path(config["paths"]["artifact_dir"]), run_dir)
