"""Exports a checkpoint as a verified bundle: `artifacts/<name>/<version>/`."""

import datetime
import logging
import re
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ..config import PACKAGE
from ..config.command_line import Config
from ..errors import UserError
from ..export.bundle import check_triton_config, describe, publish, staging_folder, write_manifest, write_triton_config
from ..export.card import card
from ..export.contract import Contract
from ..export.gate import Limits, Parity
from ..export.options import Options, checked_options
from ..export.pipeline import Trained, write_verified
from ..inference.runtime import digest, read_manifest, versions
from ..inference.signature import Signature
from ..inference.signing import signer
from ..reporting.run_report import report_export
from ..runs.run_record import add_bundle, find_checkpoint
from ..training import checkpoints
from ..training.checkpoints import Checkpoint

log = logging.getLogger(__name__)


def export_bundle(config: Config) -> None:
    """Does what `python -m <package> export` says, with the options of `export.yaml`."""
    ckpt_path, formats, options = checked_options(config)
    checkpoint = checkpoints.load(find_checkpoint(ckpt_path, Path(config["paths"]["log_dir"])))
    pl.seed_everything(checkpoint.config["seed"], workers=True, verbose=False)  # what the data draws, as in the run
    datamodule: Any = checkpoint.datamodule(config["data"])
    trained_on = getattr(checkpoint.spec, "fingerprint", None)
    if getattr(getattr(datamodule, "spec", None), "fingerprint", None) != trained_on:
        raise UserError("export takes the data of the training: leave out data.root and data.path.")
    artifact_dir = Path(config["paths"]["artifact_dir"])
    bundle, parities = export(checkpoint, datamodule, config["data"], formats, options, artifact_dir)
    add_bundle(checkpoint.path, bundle)
    report_export(bundle, parities)


def export(
    checkpoint: Checkpoint,
    datamodule: pl.LightningDataModule,
    data: Mapping[str, Any],
    formats: list[str],
    options: Options,
    artifact_dir: Path,
) -> tuple[Path, list[Parity]]:
    """Exports each format, passes all of them through the gate and only then publishes; returns the bundle's folder.

    Raises `GateFailure` when a file is not what was trained, once all were tried: nothing is published, earlier
    versions stay as they are.
    """
    limits = Limits(options.max_batch_size, options.tolerance, options.max_metric_loss)
    trained = Trained.of(checkpoint, datamodule, data, options.max_batch_size)
    name = options.name or _name_of_signature(artifact_dir, checkpoint, trained.signature)
    contract = Contract(name, trained.signature, digest(checkpoint.path), options.of_format("onnx")["opset"])
    sign = signer(options.sign, "export.sign") if options.sign is not None else None
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with staging_folder(artifact_dir / name) as folder:
        check_triton_config(folder.parent, contract, "onnx" in formats)
        chosen = {name: options.of_format(name) for name in formats}
        parities, figures = write_verified(trained, chosen, contract, limits, folder, options.partial, options.golden)
        has_onnx = any(parity.format == "onnx" for parity in parities)
        check_triton_config(folder.parent, contract, has_onnx)
        described = describe(contract, checkpoint, parities, limits, **figures)

        def seal(folder: Path, version: int) -> None:
            contents = {**described, "version": version, "created": created}
            (folder / "README.md").write_text(card(folder, contents), encoding="utf-8")
            write_manifest(contents, folder, sign)
            if has_onnx:  # last: what fails before it, as on a full disk, leaves no trace
                write_triton_config(folder, contract)

        return publish(folder, seal), parities


def _name_of_signature(artifact_dir: Path, checkpoint: Checkpoint, signature: Signature) -> str:
    """The package's name, or `<data>_<model>` where the bundles of that name take or give something else."""
    model, data = checkpoint.config["model"], checkpoint.config["data"]
    network = model.get("net") or model
    target = network.get("_target_", "model") if isinstance(network, Mapping) else "model"
    data_name = getattr(checkpoint.spec, "name", None) or data["_target_"].rpartition(".")[2].lower()
    own = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{data_name}_{target.rpartition('.')[2].lower()}")
    names = chain([PACKAGE, own], (f"{own}_{number}" for number in count(2)))
    name = next(name for name in names if _has_signature(artifact_dir / name, signature))
    if name != PACKAGE:
        log.info("name        %s: what artifacts/%s holds has another signature", name, PACKAGE)
    return name


def _has_signature(name_dir: Path, signature: Signature) -> bool:
    """Whether the newest bundle has these tensors and labels, or there is none."""
    if not name_dir.is_dir() or not (numbers := versions(name_dir)):
        return True
    try:
        found = Signature.of_manifest(read_manifest(name_dir / str(max(numbers))))
    except (UserError, KeyError, TypeError, ValueError):
        return False
    first, second = (
        [(tensor.name, tensor.dtype, tensor.shape, tensor.labels) for tensor in (*one.inputs, *one.outputs)]
        for one in (found, signature)
    )
    return first == second
