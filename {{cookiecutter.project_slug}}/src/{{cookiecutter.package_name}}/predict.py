"""Predict the labels of files as those that were trained on, and of `.npy` arrays of raw samples.

python -m <package>.predict input=data
python -m <package>.predict input='data/*' output=answers.jsonl probabilities=true
python -m <package>.predict input=samples.npy bundle=latest
python -m <package>.predict input=[a.npy,b.npy] ckpt_path=logs/train/runs/<time>/checkpoints/best.ckpt
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .cli import Config, command
from .refusal import Refusal
from .terminal import bar, shown

if TYPE_CHECKING:
    import numpy.typing as npt

    from .predictions import Row
    from .serving.accepted import Accepted
    from .serving.inputs import LeftOut, Sample

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
    """`run` takes raw inputs `(B, *accepted.shape)` to probabilities `(B, K)`, for up to `batch_size` samples."""

    accepted: Accepted
    labels: Sequence[str]
    batch_size: int
    run: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


class NothingPredicted(Refusal):
    """Every input was left out."""

    exit_code = 1


@command("predict", needs=("paths",))
def main(config: Config) -> None:
    from .checks import read_options
    from .predictions import check_output, written
    from .serving.inputs import find_files

    options = read_options(config, Options)
    if not options.input:
        raise Refusal("input= is needed: give a file, a folder, a list as [a,b], or a pattern as 'data/*'.")
    if options.batch_size < 1:
        raise Refusal(f"batch_size={options.batch_size} is too small: give 1 or more.")
    output = Path(options.output or Path(config["paths"]["output_dir"]) / "predictions.csv").expanduser()
    check_output(output)
    model = _from_bundle(options, config) if options.bundle is not None else _from_checkpoint(options, config)
    given = [options.input] if isinstance(options.input, str) else options.input
    files = find_files(given, model.accepted.suffixes)
    with written(output, model.labels, options.probabilities) as write:
        num_predicted, left_out = predict(model, files, write)
        for unused in left_out:
            log.warning("left out    %s", unused)
        if not num_predicted:
            raise NothingPredicted(f"input={options.input} holds nothing that can be predicted: {left_out[0]}.")
    log.info("predicted   %d samples of %d files, %d left out", num_predicted, len(files), len(left_out))
    log.info("written     %s", shown(output))


def predict(model: Model, files: Sequence[Path], write: Row) -> tuple[int, list[LeftOut]]:
    """Hands each sample and its probabilities to `write`, in the order of the files; returns how many, and the rest."""
    import numpy as np

    from .serving.inputs import LeftOut, read_samples

    left_out: list[LeftOut] = []
    batch: list[Sample] = []
    num_predicted = 0

    def flush() -> None:
        nonlocal num_predicted
        if batch:
            for sample, row in zip(batch, model.run(np.stack([sample.values for sample in batch])), strict=True):
                write(sample, row)
            num_predicted += len(batch)
            batch.clear()

    for path in bar(files, "predicting") if sys.stderr.isatty() else _lines(files):
        for sample in read_samples(path, model.accepted):
            if isinstance(sample, LeftOut):
                left_out.append(sample)
                continue
            batch.append(sample)
            if len(batch) == model.batch_size:
                flush()
    flush()
    return num_predicted, left_out


def _from_bundle(options: Options, config: Config) -> Model:
    """By ONNX Runtime, without torch."""
    import onnxruntime

    from .serving.runtime import Bundle, find_bundle

    if options.ckpt_path != "latest":
        raise Refusal(f"bundle={options.bundle} and ckpt_path={options.ckpt_path} are two models: give one of them.")
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    has_cuda = cuda in onnxruntime.get_available_providers()
    if options.device == "cuda" and not has_cuda:
        raise Refusal("device=cuda is not available here: install onnxruntime-gpu for it, or take device=cpu.")
    folder = find_bundle(str(options.bundle), Path(config["paths"]["artifact_dir"]))
    bundle = Bundle(folder, providers=[cuda, cpu] if has_cuda and options.device != "cpu" else [cpu])
    log.info("bundle      %s", shown(folder))
    return Model(bundle.accepted, bundle.labels, min(options.batch_size, bundle.max_batch_size), lambda x: bundle(x)[1])


def _from_checkpoint(options: Options, config: Config) -> Model:
    import torch

    from . import checkpoints
    from .exporters.contract import Signature
    from .exporters.network import deployed
    from .serving.accepted import Accepted

    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise Refusal("device=cuda is not available here: torch finds no GPU; take device=cpu.")
    device = "cuda" if has_cuda and options.device != "cpu" else "cpu"
    checkpoint = checkpoints.load(checkpoints.find(options.ckpt_path, Path(config["paths"]["log_dir"])))
    network, spec = deployed(checkpoint.model()).to(device), checkpoint.spec

    def run(inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            _, probabilities = network(torch.from_numpy(inputs).to(device))
        found: npt.NDArray[Any] = probabilities.cpu().numpy()
        return found

    accepted = Accepted.of(Signature.of(spec).input.to_dict())
    return Model(accepted, spec.labels, options.batch_size, run)


def _lines(files: Sequence[Path]) -> Iterator[Path]:
    last = time.monotonic()
    for number, path in enumerate(files):
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("predicting  file %d of %d", number, len(files))
        yield path


if __name__ == "__main__":
    main()
