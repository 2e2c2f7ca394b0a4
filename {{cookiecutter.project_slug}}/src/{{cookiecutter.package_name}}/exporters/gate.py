"""The gate: no file is published unless it was loaded afresh and agreed with the trained model on real samples."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import FILES, Array, format_named
from .fresh import first_samples, median_latency_ms
from .network import GateFailure, Signature


@dataclass(frozen=True)
class Parity:
    """How one file compares with the trained model in eager mode."""

    format: str
    file: str
    num_bytes: int
    largest_difference: float  # max |a - b| / max(1, |b|) over all tried batches and the test split
    num_agreeing: int  # test samples with the same predicted label
    num_samples: int
    accuracy: float  # on the test split
    latency_ms: float  # median of one sample, one thread
    eager_latency_ms: float


@dataclass(frozen=True)
class Samples:
    """The test split: raw inputs `(N, ...)` and labels `(N,)`."""

    inputs: Array
    labels: Array


def difference(found: Array, expected: Array) -> float:
    """max |a - b| / max(1, |b|): absolute for small values, relative for large ones; infinite for NaN."""
    if found.shape != expected.shape:
        return float("inf")
    worst = np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected)), initial=0.0)
    return float(worst) if np.isfinite(worst) else float("inf")


class Gate:
    """Knows what the trained model answers; `admit` compares a file with it."""

    def __init__(
        self, network: nn.Module, signature: Signature, samples: Samples, *, max_batch_size: int, tolerance: float
    ) -> None:
        self.network = network
        self.signature = signature
        self.samples = samples
        self.max_batch_size = max_batch_size
        self.tolerance = tolerance
        self.batch_sizes = sorted({1, 2, min(7, max_batch_size), max_batch_size})
        self.logits = np.concatenate(
            [
                self.eager(samples.inputs[start : start + max_batch_size])[0]
                for start in range(0, len(samples.labels), max_batch_size)
            ]
        )
        self.eager_latency_ms = self._time_eager()

    def eager(self, inputs: Array) -> tuple[Array, Array]:
        with torch.inference_mode():
            logits, probabilities = self.network(torch.from_numpy(inputs))
        return logits.numpy(), probabilities.numpy()

    def admit(self, format_name: str, folder: Path, *, opset: int) -> Parity:
        """Raises `GateFailure` unless the format's file in `folder` is the trained model."""
        path = folder / FILES[format_name]
        format_named(format_name).check(path, self.signature, opset=opset)
        answers = self._run_afresh(format_name, path)
        worst = max(self._compare(path, answers, size) for size in self.batch_sizes)
        over_all = difference(answers["logits"], self.logits)
        self._refuse_above_tolerance(path, over_all, "logits of the test split")
        predicted, expected = answers["logits"].argmax(axis=1), self.logits.argmax(axis=1)
        accuracy, trained_accuracy = (float(np.mean(labels == self.samples.labels)) for labels in (predicted, expected))
        if accuracy != trained_accuracy:
            raise GateFailure(
                f"{path.name} has accuracy {accuracy:.4f} on the test split, the trained model {trained_accuracy:.4f}."
            )
        return Parity(
            format=format_name,
            file=path.name,
            num_bytes=path.stat().st_size,
            largest_difference=max(worst, over_all),
            num_agreeing=int(np.sum(predicted == expected)),
            num_samples=len(expected),
            accuracy=accuracy,
            latency_ms=float(answers["latency_ms"]),
            eager_latency_ms=self.eager_latency_ms,
        )

    def _compare(self, path: Path, answers: dict[str, Array], size: int) -> float:
        logits, probabilities = self.eager(first_samples(self.samples.inputs, size))
        if not np.array_equal(answers[f"repeat_{size}"], answers[f"logits_{size}"]):
            raise GateFailure(f"{path.name} answers the same batch of {size} differently a second time.")
        worst = 0.0
        for name, expected in (("logits", logits), ("probabilities", probabilities), ("plain", logits)):
            found = difference(answers[f"{name}_{size}"], expected)
            what = "logits without the runtime's optimiser" if name == "plain" else name
            self._refuse_above_tolerance(path, found, f"{what} at batch {size}")
            worst = max(worst, found)
        return worst

    def _refuse_above_tolerance(self, path: Path, found: float, where: str) -> None:
        if not found <= self.tolerance:
            raise GateFailure(
                f"{path.name} differs from the trained model by {found:.2g} in the {where}; "
                f"export.tolerance={self.tolerance:g} is allowed."
            )

    def _run_afresh(self, format_name: str, path: Path) -> dict[str, Array]:
        with tempfile.TemporaryDirectory(prefix="gate-") as scratch:
            samples, answers = Path(scratch, "samples.npz"), Path(scratch, "answers.npz")
            np.savez(
                samples,
                inputs=self.samples.inputs,
                batch_sizes=np.array(self.batch_sizes),
                max_batch_size=np.array(self.max_batch_size),
            )
            command = [sys.executable, "-m", f"{__package__}.fresh", format_name, str(path), str(samples), str(answers)]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode != 0:
                reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
                raise GateFailure(f"{path.name} cannot be loaded and run in a fresh process: {reason}")
            with np.load(answers) as file:
                return dict(file)

    def _time_eager(self) -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return median_latency_ms(self.eager, self.samples.inputs[:1])
        finally:
            torch.set_num_threads(threads)
