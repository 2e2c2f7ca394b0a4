"""Export a checkpoint as a verified bundle: `artifacts/<name>/<version>/`.

python -m <package>.export
python -m <package>.export ckpt_path=logs/train/runs/<time>/checkpoints/best.ckpt formats=[onnx]
python -m <package>.export export.name=digits export.max_batch_size=256
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import Config, command
from .exporters import FILES
from .refusal import Refusal, nearest

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch import Tensor, nn

    from .checkpoints import Checkpoint
    from .exporters.gate import Parity, Samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The plain options of `configs/export.yaml`."""

    ckpt_path: str
    formats: list[str] | str


@dataclass(frozen=True)
class Options:
    """The section `export` of `configs/export.yaml`."""

    name: str
    opset: int
    max_batch_size: int
    tolerance: float


@command("export", needs=("paths",))
def main(config: Config) -> None:
    from .checks import read_options

    request, options = read_options(config, Request), read_options(config["export"], Options, "export")
    formats = [request.formats] if isinstance(request.formats, str) else list(dict.fromkeys(request.formats))
    _check(formats, options)

    from . import checkpoints
    from .reports import report_export

    checkpoint = checkpoints.load(checkpoints.find(request.ckpt_path, Path(config["paths"]["log_dir"])))
    datamodule = checkpoint.datamodule(config["data"])
    bundle, parities = export(checkpoint, datamodule, formats, options, Path(config["paths"]["artifact_dir"]))
    report_export(bundle, parities)


def export(
    checkpoint: Checkpoint,
    datamodule: pl.LightningDataModule,
    formats: list[str],
    options: Options,
    artifact_dir: Path,
) -> tuple[Path, list[Parity]]:
    """Exports each format, passes all of them through the gate and only then publishes; returns the bundle's folder.

    Raises `GateFailure` when a file is not what was trained: nothing is published, earlier versions stay as they are.
    """
    import numpy as np
    import torch

    from .exporters.bundle import card, incoming, manifest, publish, summarise, write_json
    from .exporters.fresh import first_samples
    from .exporters.gate import Gate
    from .exporters.network import Signature, deployed

    signature = Signature.of(checkpoint.spec)
    network = deployed(checkpoint.model())
    samples = _test_samples(datamodule)
    example = torch.from_numpy(first_samples(samples.inputs, 2))  # a batch of 1 would fix the axis
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with incoming(artifact_dir / options.name) as folder:
        summary = summarise(options.name, checkpoint, signature)
        _write_files(network, example, formats, options.opset, summary, folder)
        gate = Gate(network, signature, samples, max_batch_size=options.max_batch_size, tolerance=options.tolerance)
        parities = []
        for name in formats:
            log.info("verifying   %s", FILES[name])
            parities.append(gate.admit(name, folder, opset=options.opset))
        golden = samples.inputs[:8]
        logits, probabilities = gate.eager(golden)
        np.savez(folder / "golden.npz", input=golden, logits=logits, probabilities=probabilities)

        def seal(folder: Path, version: int) -> None:
            text = card(options.name, version, created, checkpoint, parities)
            (folder / "README.md").write_text(text, encoding="utf-8")
            contents = manifest(options.name, version, created, checkpoint, parities, options.max_batch_size, folder)
            write_json(contents, folder / "manifest.json")

        return publish(folder, seal), parities


def _write_files(
    network: nn.Module, example: Tensor, formats: list[str], opset: int, summary: dict[str, str], folder: Path
) -> None:
    from .exporters import format_named
    from .exporters.network import GateFailure

    for name in formats:
        log.info("exporting   %s", FILES[name])
        try:
            format_named(name).export(network, example, folder / FILES[name], opset=opset, summary=summary)
        except Refusal:
            raise
        except Exception as error:  # what an exporter raises for an operator that it does not know is its own
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise GateFailure(f"format '{name}' cannot express this network: {reason}") from error


def _test_samples(datamodule: pl.LightningDataModule) -> Samples:
    import torch

    from .exporters.gate import Samples

    datamodule.prepare_data()
    datamodule.setup("test")
    inputs, labels = zip(*datamodule.test_dataloader(), strict=True)
    return Samples(torch.cat(inputs).numpy(), torch.cat(labels).numpy())


def _check(formats: list[str], options: Options) -> None:
    if not formats:
        raise Refusal(f"formats=[] exports nothing: choose from {', '.join(FILES)}.")
    for name in formats:
        if name not in FILES:
            raise Refusal(f"formats=[{name}] is no format; {nearest(name, FILES)}")
    if options.max_batch_size < 2:
        raise Refusal(f"export.max_batch_size={options.max_batch_size} is too small: give 2 or more.")
    if Path(options.name).name != options.name or options.name.startswith("."):
        raise Refusal(f"export.name={options.name} is no folder name: give one without slashes or a leading dot.")


if __name__ == "__main__":
    main()
