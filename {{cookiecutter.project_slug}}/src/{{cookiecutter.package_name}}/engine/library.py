"""A trained model within another program: `load` a checkpoint or a bundle, and let it predict."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .errors import UserError
from .inference.answers import describe
from .inference.inputs import Sample, SkippedSample, find_files, read_samples
from .inference.runtime import find_bundle
from .inference.signature import Array, Signature
from .workflows.prediction import Model, model_of_bundle, model_of_checkpoint

Files = str | Path | Sequence[str | Path]


class LoadedModel:
    """`signature` tells the names, types and shapes of the inputs and outputs."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.signature: Signature = model.signature

    def predict(self, given: Array | Mapping[str, Array] | Files) -> list[dict[str, Any]]:
        """Returns `{"label": ..., "probability": ..., "probabilities": ...}` or the like for each sample.

        Takes raw samples: an array `(N, ...)`, arrays by the names of the inputs, or files, folders and patterns, as
        the command `predict` does. Raises `ValueError` for arrays that do not fit, and `UserError` for files that
        cannot be used.
        """
        samples = self._of_arrays(given) if isinstance(given, np.ndarray | Mapping) else self._of_files(given)
        return [describe(self.signature, outputs, every=True) for _, outputs in self._model.outputs_of(samples)]

    def _of_arrays(self, given: Array | Mapping[str, Array]) -> Iterator[Sample]:
        if isinstance(given, np.ndarray):
            if len(self.signature.inputs) > 1:
                raise ValueError(f"give arrays by name: {', '.join(tensor.name for tensor in self.signature.inputs)}")
            given = {self.signature.inputs[0].name: given}
        lengths = [len(array) for array in given.values()]
        length = max(lengths, default=0)
        if length != min(lengths, default=0):
            raise ValueError(f"the arrays have {' and '.join(map(str, lengths))} samples: give the same number of each")
        for start in range(0, length, self._model.batch_size):
            self.signature.bind({name: array[start : start + self._model.batch_size] for name, array in given.items()})
        for place in range(length):  # checked above, before the first is computed
            yield Sample("", place, {name: array[place] for name, array in given.items()})

    def _of_files(self, given: Files) -> Iterator[Sample]:
        names = [given] if isinstance(given, str | Path) else given
        for path in find_files(map(str, names), self.signature):
            for sample in read_samples(path, self.signature):
                if isinstance(sample, SkippedSample):
                    raise UserError(f"{sample}: it cannot be used.")
                yield sample


def load(
    model: str | Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    batch_size: int = 64,
    artifact_dir: str | Path = "artifacts",
) -> LoadedModel:
    """Loads a checkpoint (`.ckpt`) with torch, or a bundle with ONNX Runtime; `latest` is the newest bundle.

    Raises `UserError` for what is neither, or was damaged or changed.
    """
    path = Path(model).expanduser()
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: give a checkpoint, as logs/train/runs/<time>/checkpoints/best.ckpt."
            )
        return LoadedModel(model_of_checkpoint(path, batch_size, device))
    return LoadedModel(model_of_bundle(find_bundle(str(model), Path(artifact_dir)), batch_size, device))
