"""Measure training under each strategy side by side; or a bundle, each format beside eager mode.

    python -m <package> benchmark
    python -m <package> benchmark strategies=[single,ddp] devices=[2,4] model=mlp trainer.precision=bf16-mixed
    python -m <package> benchmark bundle=latest
    python -m <package> benchmark bundle=artifacts/<name>/<version> trust=true batch_sizes=[1,8,64]

Measure while nothing else runs on the machine, and a bundle on the machine that will serve it.
"""

from pathlib import Path

from ..config.command_line import Config
from ..config.validation import read_options
from ..inference.runtime import find_bundle
from .options import Options


def main(config: Config) -> None:
    """Refuses a mistake before torch is imported, which takes seconds."""
    options, run_dir = read_options(config, Options), Path(config["paths"]["output_dir"])
    if options.bundle is None:
        from .training import measure_training

        measure_training(config, options, run_dir)
    else:
        folder = find_bundle(options.bundle, Path(config["paths"]["artifact_dir"]))
        from .bundles import measure_bundle

        measure_bundle(folder, options, run_dir)
