"""Writes the files of a bundle and passes each through the gate; card and manifest come afterwards."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from ..data.labels import count_labels
from ..distributed.strategies import OneDeviceStrategy
from ..errors import UserError
from ..inference.runtime import GOLDEN
from ..spec import DataSpec
from ..training.checkpoints import Checkpoint
from ..training.plots import MetricPlots
from .bundle import without_local_paths
from .formats import FORMATS, Array, exporter, first_samples
from .gate import Limits, Parity, Reference, admit, precise
from .network import Source, deployed, eager, eager_latency_ms
from .signature import Contract, GateFailure

log = logging.getLogger(__name__)

NUM_GOLDEN = 8


def write_verified(
    checkpoint: Checkpoint,
    datamodule: pl.LightningDataModule,
    formats: Mapping[str, Mapping[str, Any]],
    contract: Contract,
    limits: Limits,
    folder: Path,
    partial: bool,
) -> tuple[list[Parity], dict[str, Any]]:
    """Returns what the gate measured, and entries of the manifest; `formats` maps names to options.

    Raises `GateFailure` for all formats that failed, once all were tried; with `partial` only if none passed.
    """
    model = checkpoint.model()
    network = deployed(model, checkpoint.spec)
    inputs, truth = _test_samples(datamodule)
    run = eager(network)
    exact = precise(network, eager, inputs)
    reference = Reference.of(run, exact, inputs, truth, limits.max_batch_size, checkpoint.spec.task)
    model.eval()
    if not torch.equal(network.net(example := torch.from_numpy(inputs[:2])), model(example)):
        raise GateFailure("the model's forward does more than self.net, which is exported: move it into the network.")
    rebuilt = eager(deployed(checkpoint.model(), checkpoint.spec))(inputs[:1])
    if not np.allclose(rebuilt[0], reference.by_batch[1][0], atol=1e-4):  # kernels may round differently
        raise GateFailure("the network answers otherwise once it is built anew: keep what it draws in a buffer.")
    source = Source(
        network=network,
        example=torch.from_numpy(first_samples(inputs, 2)).clone(memory_format=torch.contiguous_format),
        contract=contract,
        options={},
        model_section=without_local_paths(checkpoint.config["model"]),
        spec=checkpoint.spec,
        training_inputs=lambda num_samples: _training_inputs(datamodule, num_samples),
    )
    parities = _write_and_admit(source, formats, reference, limits, folder, partial)
    golden = inputs[:NUM_GOLDEN]
    named = zip((tensor.name for tensor in contract.signature.outputs), run(golden), strict=True)
    np.savez(folder / GOLDEN, **{"input": golden, **dict(named)})  # type: ignore[arg-type]
    figures = {
        "data": _data(checkpoint.spec, datamodule, len(truth)),
        "tolerance": _allowed(reference, limits),
        "eager_latency_ms": eager_latency_ms(network, inputs[:1]),
        "metrics": _tested(model, datamodule, folder),
    }
    return parities, figures


def _allowed(reference: Reference, limits: Limits) -> float:
    allowed = reference.tolerance(limits)
    if allowed > limits.tolerance:
        log.info("rounding    float32 moves the outputs by %.1e, so a file may by %.1e", reference.rounding, allowed)
    return allowed


def _tested(model: pl.LightningModule, datamodule: pl.LightningDataModule, folder: Path) -> dict[str, float]:
    """Returns the figures of the module's own test loop, and leaves the pictures of its metrics in `folder`."""
    trainer = pl.Trainer(
        strategy=OneDeviceStrategy(torch.device("cpu")),
        accelerator="cpu",
        callbacks=[MetricPlots()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    figures = trainer.test(model, datamodule=datamodule, verbose=False)
    return {name: value for of_loader in figures for name, value in of_loader.items()}


def _data(spec: DataSpec, datamodule: pl.LightningDataModule, num_test: int) -> dict[str, Any]:
    """Returns the manifest's entry of the data."""
    training: Any = datamodule.train_dataloader().dataset
    labels = getattr(training, "labels", None)  # (N,)
    num_val = len(datamodule.val_dataloader().dataset)
    return {
        "name": spec.name,
        "description": spec.description,
        "num_samples": {"train": len(training), "val": num_val, "test": num_test},
        "label_counts": list(count_labels(labels, spec.num_outputs)) if labels is not None and spec.labels else None,
    }


def _write_and_admit(
    source: Source,
    formats: Mapping[str, Mapping[str, Any]],
    reference: Reference,
    limits: Limits,
    folder: Path,
    partial: bool,
) -> list[Parity]:
    parities, failures = [], []
    for name, options in formats.items():
        file = FORMATS[name].file
        try:
            log.info("exporting   %s%s", file, " (legacy)" if FORMATS[name].status == "legacy" else "")
            (folder / file).write_bytes(exported(name, replace(source, options=options)))
            log.info("verifying   %s", file)
            parities.append(admit(name, folder, source.contract, reference, limits))
        except GateFailure as failure:  # the other formats are tried all the same
            log.info("failed      %s", file)
            failures.append(str(failure).rstrip("."))
            (folder / file).unlink(missing_ok=True)
    if failures and not (partial and parities):
        reasons, remedy = "; ".join(failures), "; export.partial=true publishes the others" if parities else ""
        count = f"{len(failures)} of {len(formats)} formats failed"
        raise GateFailure(f"{reasons}; {count}, so nothing was published{remedy}.")
    for failed in failures:
        log.warning("left out    %s", failed)
    return parities


def exported(name: str, source: Source) -> bytes:
    try:
        return exporter(name).export(source)
    except (UserError, OSError):
        raise
    except Exception as error:  # an exporter raises errors of its own for an operator that it does not know
        cause: BaseException = error
        while cause.__cause__ is not None:  # the first one names the operator
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise GateFailure(f"format '{name}' cannot express this network: {reason}") from error


def _test_samples(datamodule: pl.LightningDataModule) -> tuple[Array, Array]:
    datamodule.prepare_data()
    datamodule.setup("fit")  # for the calibration, and to count the samples
    datamodule.setup("test")
    inputs, labels = zip(*datamodule.test_dataloader(), strict=True)
    return torch.cat(inputs).numpy(), torch.cat(labels).numpy()


def _training_inputs(datamodule: pl.LightningDataModule, num_samples: int) -> Array:
    """Returns that many inputs, or all if there are fewer."""
    found: list[Array] = []
    for inputs, _ in datamodule.train_dataloader():
        found.append(inputs.numpy())
        if sum(map(len, found)) >= num_samples:
            break
    return np.concatenate(found)[:num_samples]
