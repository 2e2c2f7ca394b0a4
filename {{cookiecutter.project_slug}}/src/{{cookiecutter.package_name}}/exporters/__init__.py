"""One module a format, each with the same verbs: `export`, `check` and `load`. Importing this imports no torch."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .network import Signature

Array = npt.NDArray[Any]

# The file that each format writes.
FILES = {"onnx": "model.onnx", "torchscript": "model.pt"}


class Run(Protocol):
    """Input `(B, ...)` as the signature says to logits and probabilities, both `(B, K)` float32."""

    def __call__(self, inputs: Array) -> tuple[Array, Array]: ...


class Format(Protocol):
    def export(
        self, network: "nn.Module", example: "Tensor", path: Path, *, opset: int, summary: dict[str, str]
    ) -> None:
        """Writes the file; `example` is a batch of 2 or more, `summary` is kept inside the file."""

    def check(self, path: Path, signature: "Signature", *, opset: int) -> None:
        """Raises `GateFailure` for a file that is not what it should be, without running it."""

    def load(self, path: Path, *, optimize: bool = True) -> Run:
        """On the CPU, with one thread; `optimize=False` runs the graph as it was written."""


def format_named(name: str) -> Format:
    return cast(Format, import_module(f".{name}", __name__))
