"""Writes the files of a bundle and passes each through the gate; card and manifest come afterwards."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..errors import UserError
from ..inference.runtime import GOLDEN, batches, difference, first_samples
from ..inference.signature import Array, Signature, TensorSignature
from ..spec import DataSpec
from ..training.checkpoints import Checkpoint
from ..training.plots import MetricPlots
from .bundle import without_local_paths
from .contract import Contract, GateFailure
from .formats import FORMATS, exporter
from .gate import MULTIPLE, Limits, Parity, Reference, admit
from .loops import Recording, record, recorded, run_loop
from .metrics import MetricGate
from .network import DeployedNetwork, Source, deployed, description_of, eager, eager_latency_ms, forward_of, precise
from .signature import signature_of

log = logging.getLogger(__name__)

NUM_GOLDEN = 8
CALIBRATION_BATCH = 64

Golden = Literal["real", "synthetic"]


@dataclass(frozen=True)
class Trained:
    """A trained module, what its test loop calls `forward` with, and the network that is deployed."""

    checkpoint: Checkpoint
    module: pl.LightningModule
    datamodule: pl.LightningDataModule
    data: Mapping[str, Any]  # options of `data.` that replace those of the checkpoint
    recording: Recording
    network: DeployedNetwork
    signature: Signature

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, datamodule: pl.LightningDataModule, data: Mapping[str, Any], max_batch_size: int
    ) -> "Trained":
        """Raises `GateFailure` for a `forward` that cannot be exported."""
        module = checkpoint.model()
        recording = recorded(module, datamodule, "test")
        assert recording.call is not None
        module.eval()
        network, again = (deployed(built, recording.call) for built in (module, checkpoint.model()))
        run, described = eager(network), description_of(module)
        signature = signature_of(run, recording, described, forward_of(module), max_batch_size)
        first = first_samples(recording.batches[0], 1)
        for name, output in eager(again)(first).items():
            if difference(output, run(first)[name]) > 1e-4:  # kernels may round differently
                raise GateFailure(
                    "the network answers otherwise once it is built anew: keep what it draws in a buffer."
                )
        return cls(checkpoint, module, datamodule, data, recording, network, signature)

    def source(self, contract: Contract) -> Source:
        """Returns what the exporters need; its example has two samples or more, and sizes of two or more."""
        batch = max(self.recording.batches, key=lambda batch: min(map(_least_side, batch.values())))
        return Source(
            module=self.module,
            network=self.network,
            example=first_samples(batch, 2),
            contract=contract,
            options={},
            model_section=without_local_paths(self.checkpoint.config["model"]),
            spec=self.checkpoint.spec,
            calibration=self._training_inputs,
        )

    def _training_inputs(self, num_samples: int) -> Iterator[dict[str, Array]]:
        """Yields inputs of `forward` from the training split, in batches of one size where no axis else is free."""
        self.datamodule.setup("fit")  # the loops before it were those of the test
        loader = self.datamodule.train_dataloader()
        num_batches = -(-num_samples // (loader.batch_size or 1))
        run = lambda: run_loop(self.module, self.datamodule, dataloaders=loader, limit=num_batches)  # noqa: E731
        recording = record(self.module, run, num_batches)
        self.module.eval()
        if recording.call is None:
            raise GateFailure("the samples of the training split cannot be had: call self(...) in test_step")
        if self.signature.max_elements is None:
            yield from recording.batches
            return
        names = recording.call.inputs
        whole = {name: np.concatenate([batch[name] for batch in recording.batches])[:num_samples] for name in names}
        count = len(whole[names[0]])
        # `entropy` and `percentile` take batches of one size only.
        yield from batches(whole, max(size for size in range(1, CALIBRATION_BATCH + 1) if count % size == 0))


def write_verified(
    trained: Trained,
    formats: Mapping[str, Mapping[str, Any]],
    contract: Contract,
    limits: Limits,
    folder: Path,
    partial: bool,
    golden: Golden = "real",
) -> tuple[list[Parity], dict[str, Any]]:
    """Returns what the gate measured, and entries of the manifest; `formats` maps names to options.

    The golden samples are `real` ones of the test split, or `synthetic`. Raises `GateFailure` for all formats that
    failed, once all were tried; with `partial` only if none passed.
    """
    run, real = eager(trained.network), trained.recording.batches
    reference = Reference.of(run, precise(trained.network, real[0]), contract.signature, real, limits.max_batch_size)
    allowed = max(reference.tolerance(name, limits) for name in reference.rounding)
    if allowed > limits.tolerance:
        rounding = max(reference.rounding.values())
        log.info("rounding    float32 moves the outputs by %.1e, so a file may by %.1e", rounding, allowed)
    checkpoint, described = trained.checkpoint, description_of(trained.module)
    source, call = trained.source(contract), trained.network.call
    with MetricGate(checkpoint.path, trained.data, call, limits, described, checkpoint.monitor) as gate:
        gate.measure(trained.module, MULTIPLE * max(reference.rounding.values()))
        if gate.reason is not None:
            log.warning("warning     no metric is verified: %s", gate.reason)
        for name in gate.random:
            log.warning("warning     %s differs between two runs with one seed, so it is not compared", name)
        parities = _write_and_admit(source, formats, reference, gate, folder, partial)
    num_golden = min(NUM_GOLDEN, limits.max_batch_size, len(next(iter(real[0].values()))))
    samples = first_samples(real[0], num_golden)
    if golden == "synthetic":
        samples = synthetic(contract.signature, samples, checkpoint.config["seed"])
    np.savez(folder / GOLDEN, **samples, **run(samples))  # type: ignore[arg-type]
    other = "synthetic" if golden == "real" else "real"
    log.info("golden      %d %s samples in %s; export.golden=%s for %s ones", num_golden, golden, GOLDEN, other, other)
    metrics = {}
    if gate.has_loop:
        metrics = run_loop(trained.module, trained.datamodule, callbacks=[MetricPlots()], folder=folder)
    figures = {
        "data": _data(checkpoint.spec, trained.datamodule),
        "golden": golden,
        "tolerance": allowed,
        "eager_latency_ms": eager_latency_ms(trained.network, first_samples(real[0], 1)),
        "metrics": metrics,
        "random_metrics": gate.random,
        "metrics_not_verified": gate.reason,
    }
    return parities, figures


def synthetic(signature: Signature, samples: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Draws as many samples of the same shapes, from statistics alone: nothing of a real one is published with them.

    These are mean and standard deviation of the training split, categories, and the range of an input; for an input
    that has none of them, mean and standard deviation of the samples. Raises `UserError` for text.
    """
    rng = np.random.default_rng(seed)
    return {tensor.name: _drawn(tensor, samples[tensor.name], rng) for tensor in signature.inputs}


def _drawn(tensor: TensorSignature, samples: Array, rng: np.random.Generator) -> Array:
    dtype, shape = tensor.numpy_dtype, samples.shape
    if dtype.kind not in "biuf":
        raise UserError(f"export.golden=synthetic cannot make text, which '{tensor.name}' is: leave it out.")
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    known = samples[~np.isnan(samples)] if dtype.kind == "f" else samples
    mean, std = (known.mean(), known.std()) if known.size else (0.0, 1.0)
    if tensor.mean and len(shape) > 1 and len(tensor.mean) == shape[1]:
        axes = (1, -1, *(1 for _ in shape[2:]))
        mean, std = np.reshape(tensor.mean, axes), np.reshape(tensor.std, axes)
    elif tensor.range is not None:
        low, high = tensor.range
        mean, std = (low + high) / 2, (high - low) / 4
    drawn = np.asarray(rng.normal(mean, std, shape))
    for place, column in enumerate(tensor.columns):
        if column.categories is not None:
            drawn[:, place] = rng.integers(1, len(column.categories), len(drawn), endpoint=True)
        elif column.boolean:
            drawn[:, place] = rng.integers(0, 1, len(drawn), endpoint=True)
    low, high = tensor.range or ((known.min(), known.max()) if dtype.kind in "iu" else (-np.inf, np.inf))
    drawn = np.clip(drawn, low, high)
    return (np.rint(drawn) if dtype.kind in "iu" else drawn).astype(dtype)


def _least_side(array: Array) -> int:
    return min(array.shape[1:], default=2)


def _data(spec: Any, datamodule: pl.LightningDataModule) -> dict[str, Any]:
    """Returns the manifest's entry of the data."""
    datamodule.setup("fit")
    datamodule.setup("test")
    counts = {name: _num_samples(datamodule, f"{name}_dataloader") for name in ("train", "val", "test")}
    is_described = isinstance(spec, DataSpec)
    return {
        "name": spec.name if is_described else type(datamodule).__name__,
        "description": spec.description if is_described else "",
        "num_samples": counts,
    }


def _num_samples(datamodule: pl.LightningDataModule, name: str) -> int | None:
    """None where a loader is missing or has no length, or there are several."""
    if not is_overridden(name, datamodule):
        return None
    try:
        return len(getattr(datamodule, name)().dataset)
    except (AttributeError, TypeError):
        return None


def _write_and_admit(
    source: Source,
    formats: Mapping[str, Mapping[str, Any]],
    reference: Reference,
    gate: MetricGate,
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
            parity = admit(name, folder, source.contract, reference, gate.limits)
            parities.append(replace(parity, metrics=gate.judge(parity, folder)))
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
