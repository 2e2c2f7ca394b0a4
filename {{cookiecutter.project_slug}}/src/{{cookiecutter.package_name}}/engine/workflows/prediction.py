"""Predicts for files of the kind that the model was trained on, and for arrays of raw samples: `.npy` and `.npz`."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..config.command_line import Config
from ..config.validation import read_options
from ..console import bar, shown
from ..errors import UserError
from ..inference.inputs import Sample, SkippedSample, find_files, matches_of, read_samples
from ..inference.prediction_files import WritePrediction, check_output, places_of, prediction_writer
from ..inference.signature import Array, Arrays, Signature
from ..runs.run_record import check_checkpoint, find_checkpoint

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/predict.yaml`."""

    input: list[str] | str | None
    ckpt_path: str
    bundle: str | None
    output: str | None
    probabilities: bool
    batch_size: int
    device: Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Model:
    """`run` computes the outputs by name of inputs `(B, ...)` by name, B up to `batch_size`."""

    signature: Signature
    batch_size: int
    run: Callable[[Arrays], Arrays]

    def outputs_of(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, dict[str, Array]]]:
        """Yields each sample and its outputs, in their order.

        Samples that follow each other with the same shapes are computed at once.
        """
        for _, alike in itertools.groupby(samples, key=_shapes):
            while batch := list(itertools.islice(alike, self.batch_size)):
                outputs = self.run(
                    {name: np.stack([sample.values[name] for sample in batch]) for name in batch[0].values}
                )
                for place, sample in enumerate(batch):
                    yield sample, {name: output[place] for name, output in outputs.items()}


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [array.shape for array in sample.values.values()]


class NothingPredicted(UserError):
    """All inputs were left out."""

    exit_code = 1


def predict_files(config: Config) -> None:
    """Runs the command `predict` with the options of `predict.yaml`."""
    options = read_options(config, Options)
    if not options.input:
        raise UserError("input= is needed: give a file, a folder, a list as [a,b], or a pattern as 'data/*'.")
    if options.batch_size < 1:
        raise UserError(f"batch_size={options.batch_size} is too small: give 1 or more.")
    output = Path(options.output or Path(config["paths"]["output_dir"]) / "predictions.csv").expanduser()
    check_output(output)
    given = [options.input] if isinstance(options.input, str) else options.input
    for name in given:
        matches_of(name)  # before torch is imported, which takes seconds
    model = _chosen(options, config)
    files = find_files(given, model.signature)
    places = places_of(files, model.signature)
    with prediction_writer(output, model.signature, options.probabilities, places) as write:
        num_predicted, left_out = predict(model, files, write)
        for unused in left_out:
            log.warning("left out    %s", unused)
        if not num_predicted:
            raise NothingPredicted(f"input={options.input} holds nothing that can be predicted: {left_out[0]}.")
    log.info("predicted   %d samples of %d files, %d left out", num_predicted, len(files), len(left_out))
    log.info("written     %s", shown(output))


def predict(model: Model, files: Sequence[Path], write: WritePrediction) -> tuple[int, list[SkippedSample]]:
    """Passes each sample and its outputs to `write`, in the order of the files; returns their number, and the rest."""
    left_out: list[SkippedSample] = []
    num_predicted, log_progress = 0, _progress_logger()

    def usable() -> Iterator[Sample]:
        for path in bar(files, "predicting"):
            for sample in read_samples(path, model.signature):
                if isinstance(sample, SkippedSample):
                    left_out.append(sample)
                else:
                    yield sample

    for sample, outputs in model.outputs_of(usable()):
        write(sample, outputs)
        num_predicted += 1
        log_progress(num_predicted)
    return num_predicted, left_out


def model_of_bundle(folder: Path, batch_size: int, device: str) -> Model:
    """Loads a bundle into ONNX Runtime, without torch."""
    import onnxruntime  # here, as below: `predict` needs either ONNX Runtime or torch, and both take long to import

    from ..inference.runtime import Bundle

    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    has_cuda = cuda in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise UserError("device=cuda is not available here: install onnxruntime-gpu for it, or take device=cpu.")
    bundle = Bundle(folder, providers=[cuda, cpu] if has_cuda and device != "cpu" else [cpu])
    if not bundle.signature.max_batch_size:
        raise UserError(f"{shown(folder)} takes no batches: call its file, or serve it.")
    return Model(bundle.signature, min(batch_size, bundle.signature.max_batch_size), bundle)


def model_of_checkpoint(path: Path, batch_size: int, device: str) -> Model:
    """Loads a checkpoint into the deployed network of torch.

    Its inputs are those of the example in `deployed()`, or else what the test loop calls `forward` with.
    """
    import torch

    from ..export.loops import from_example, recorded
    from ..export.network import deployed, description_of, eager, forward_of
    from ..export.signature import signature_of
    from ..training import checkpoints

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("device=cuda is not available here: torch finds no GPU; take device=cpu.")
    place = "cuda" if has_cuda and device != "cpu" else "cpu"
    checkpoint = checkpoints.load(path)
    module = checkpoint.model()
    recording = from_example(module) or recorded(module, checkpoint.datamodule({}), "test")
    assert recording.call is not None
    module.eval()
    network, described, owner = deployed(module, recording.call), description_of(module), forward_of(module)
    signature = signature_of(eager(network), recording, described, owner, batch_size)
    return Model(signature, batch_size, eager(network.to(place), device=place))


def _chosen(options: Options, config: Config) -> Model:
    if options.bundle is None:
        path = find_checkpoint(options.ckpt_path, Path(config["paths"]["log_dir"]))
        check_checkpoint(path)
        return model_of_checkpoint(path, options.batch_size, options.device)
    from ..inference.runtime import find_bundle

    if options.ckpt_path != "latest":
        raise UserError(f"bundle={options.bundle} and ckpt_path={options.ckpt_path} are two models: give one of them.")
    folder = find_bundle(options.bundle, Path(config["paths"]["artifact_dir"]))
    log.info("bundle      %s", shown(folder))
    return model_of_bundle(folder, options.batch_size, options.device)


def _progress_logger() -> Callable[[int], None]:
    """Returns a function that logs every ten seconds, for pipes and for a single large file, where the bar stands."""
    last = time.monotonic()

    def log_progress(num_predicted: int) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("predicting  %s samples so far", f"{num_predicted:,}")

    return log_progress
