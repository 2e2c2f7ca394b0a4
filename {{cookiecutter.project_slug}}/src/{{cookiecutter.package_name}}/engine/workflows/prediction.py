"""Predicts for files of the kind that the model was trained on, and for `.npy` arrays of raw samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..config.command_line import Config
from ..config.validation import read_options
from ..console import bar, shown
from ..errors import UserError
from ..inference.input_schema import InputSchema
from ..inference.inputs import Sample, SkippedSample, find_files, read_samples
from ..inference.prediction_files import WritePrediction, check_output, prediction_writer
from ..inference.tasks import TASKS, Task

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
    """`run` computes the task's last output `(B, K)` of inputs `(B, *input_schema.shape)`, B up to `batch_size`."""

    input_schema: InputSchema
    task: Task
    labels: Sequence[str]
    batch_size: int
    run: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


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
    model = _from_bundle(options, config) if options.bundle is not None else _from_checkpoint(options, config)
    given = [options.input] if isinstance(options.input, str) else options.input
    files = find_files(given, model.input_schema.suffixes)
    with prediction_writer(output, model.task, model.labels, options.probabilities) as write:
        num_predicted, left_out = predict(model, files, write)
        for unused in left_out:
            log.warning("left out    %s", unused)
        if not num_predicted:
            raise NothingPredicted(f"input={options.input} holds nothing that can be predicted: {left_out[0]}.")
    log.info("predicted   %d samples of %d files, %d left out", num_predicted, len(files), len(left_out))
    log.info("written     %s", shown(output))


def predict(model: Model, files: Sequence[Path], write: WritePrediction) -> tuple[int, list[SkippedSample]]:
    """Passes each sample and its output to `write`, in the order of the files; returns their number, and the rest."""
    left_out: list[SkippedSample] = []
    batch: list[Sample] = []
    num_predicted, log_progress = 0, _progress_logger()

    def flush() -> None:
        nonlocal num_predicted
        if batch:
            for sample, row in zip(batch, model.run(np.stack([sample.values for sample in batch])), strict=True):
                write(sample, row)
            num_predicted += len(batch)
            batch.clear()
            log_progress(num_predicted)

    for path in bar(files, "predicting"):
        for sample in read_samples(path, model.input_schema):
            if isinstance(sample, SkippedSample):
                left_out.append(sample)
                continue
            batch.append(sample)
            if len(batch) == model.batch_size:
                flush()
    flush()
    return num_predicted, left_out


def _from_bundle(options: Options, config: Config) -> Model:
    """Loads a bundle into ONNX Runtime, without torch."""
    import onnxruntime  # here, as below: `predict` needs either ONNX Runtime or torch, and both take long to import

    from ..inference.runtime import Bundle, find_bundle

    if options.ckpt_path != "latest":
        raise UserError(f"bundle={options.bundle} and ckpt_path={options.ckpt_path} are two models: give one of them.")
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    has_cuda = cuda in onnxruntime.get_available_providers()
    if options.device == "cuda" and not has_cuda:
        raise UserError("device=cuda is not available here: install onnxruntime-gpu for it, or take device=cpu.")
    folder = find_bundle(str(options.bundle), Path(config["paths"]["artifact_dir"]))
    bundle = Bundle(folder, providers=[cuda, cpu] if has_cuda and options.device != "cpu" else [cpu])
    log.info("bundle      %s", shown(folder))
    batch_size = min(options.batch_size, bundle.max_batch_size)
    return Model(bundle.input_schema, bundle.task, bundle.labels, batch_size, lambda x: bundle(x)[-1])


def _from_checkpoint(options: Options, config: Config) -> Model:
    """Loads a checkpoint into the deployed network of torch."""
    import torch

    from ..export.network import deployed, require_data_spec
    from ..export.signature import Signature
    from ..training import checkpoints

    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise UserError("device=cuda is not available here: torch finds no GPU; take device=cpu.")
    device = "cuda" if has_cuda and options.device != "cpu" else "cpu"
    checkpoint = checkpoints.load(checkpoints.find(options.ckpt_path, Path(config["paths"]["log_dir"])))
    spec = checkpoint.spec
    require_data_spec(spec)
    network = deployed(checkpoint.model(), spec).to(device)

    def run(inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(inputs).to(device))
        last: npt.NDArray[Any] = outputs[-1].cpu().numpy()
        return last

    input_schema = InputSchema.from_dict(Signature.of(spec).input.to_dict())
    return Model(input_schema, TASKS[spec.task], spec.labels, options.batch_size, run)


def _progress_logger() -> Callable[[int], None]:
    """Returns a function that logs every ten seconds, for pipes and for a single large file, where the bar stands."""
    last = time.monotonic()

    def log_progress(num_predicted: int) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("predicting  %s samples so far", f"{num_predicted:,}")

    return log_progress
