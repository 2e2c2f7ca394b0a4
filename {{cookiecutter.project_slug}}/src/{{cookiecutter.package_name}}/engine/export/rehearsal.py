"""Tries whether a network can be exported before it is trained for days."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..errors import one_line
from ..inference.runtime import difference, first_samples
from ..training.build import build_model
from .contract import Contract, GateFailure
from .formats import FORMATS, ONNX_OPTIONS, exporter
from .gate import check_structure, refuse_dependence
from .loops import record, recorded, run_loop
from .network import Source, deployed, description_of, eager, forward_of, precise
from .pipeline import exported
from .signature import signature_of

log = logging.getLogger(__name__)

REHEARSED = ("onnx", "torchscript")
TOLERANCE = 1e-4  # weights are untrained here: only a graph that computes something else should fail
NUM_BATCHES, NUM_SAMPLES = 2, 64


def rehearse(
    is_required: bool, model_section: Mapping[str, Any], spec: Any, datamodule: pl.LightningDataModule
) -> None:
    """Exports an untrained network, and runs its files on samples of the validation split.

    What cannot be exported is reported; with `is_required` it raises `GateFailure`.
    """
    started = time.perf_counter()
    try:
        _rehearse(build_model(model_section, spec), model_section, spec, datamodule)
    except Exception as error:  # a network of any kind may raise anything
        if isinstance(error, OSError):
            raise
        reason = str(error).rstrip(".") if isinstance(error, GateFailure) else one_line(error)
        if is_required:
            raise GateFailure(
                f"this network could not be exported once it is trained: {reason}; rehearse_export=warn trains it all "
                "the same."
            ) from error
        log.warning("warning     this network could not be exported once it is trained: %s", reason)
        return
    log.info("rehearsed   the export to %s, in %.1f s", " and ".join(REHEARSED), time.perf_counter() - started)


def _rehearse(
    module: pl.LightningModule, model_section: Mapping[str, Any], spec: Any, datamodule: pl.LightningDataModule
) -> None:
    trainer = datamodule.trainer
    try:
        recording = recorded(module, datamodule, "validate", NUM_BATCHES)
        _warn_of_test_loop(module, datamodule)
    finally:
        datamodule.trainer = trainer
    assert recording.call is not None
    module.eval()
    network = deployed(module, recording.call)
    run, batch = eager(network), recording.batches[0]
    batch = {name: array[:NUM_SAMPLES] for name, array in batch.items()}
    num_samples = len(next(iter(batch.values())))
    refuse_dependence(precise(network, batch), batch, [2, num_samples], "first batch")
    signature = signature_of(run, recording, description_of(module), forward_of(module), NUM_SAMPLES)
    contract = Contract("rehearsal", signature, "", int(ONNX_OPTIONS["opset"]))
    source = Source(module, network, first_samples(batch, 2), contract, {}, model_section, spec, lambda _: iter(()))
    expected = run(batch)
    with tempfile.TemporaryDirectory() as folder:
        for name in REHEARSED:
            path = Path(folder, FORMATS[name].file)
            path.write_bytes(exported(name, source))
            check_structure(name, path, contract)
            for output, found in exporter(name).load(path)(batch).items():
                apart = difference(found, expected[output])
                if not apart <= TOLERANCE:
                    raise GateFailure(f"{path.name} differs from the network by {apart:.2g} in '{output}'.")


def _warn_of_test_loop(module: pl.LightningModule, datamodule: pl.LightningDataModule) -> None:
    """Says that no metric of a file could be verified; what else is wrong with the loop, the test will tell."""
    if not is_overridden("test_step", module) or not is_overridden("val_dataloader", datamodule):
        return
    with suppress(Exception):
        loader = datamodule.val_dataloader()
        recording = record(module, lambda: run_loop(module, datamodule, dataloaders=loader, limit=1), 1)
        if recording.call is None:
            name = type(module).__name__
            log.warning("warning     test_step of %s never calls forward: call self(...) to verify metrics", name)
