"""The table of formats, and the functions of their modules: `export`, `check` and `load`. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from ..inference.signature import Array, Arrays

if TYPE_CHECKING:
    from .contract import Contract
    from .network import Source

ONNX_OPTIONS: dict[str, int | str] = {"opset": 18}
CALIBRATION_OPTIONS: dict[str, int | str] = {"num_calibration_samples": 512, "calibration": "minmax"}


@dataclass(frozen=True)
class Format:
    """`options` are those that the format takes from the section `export`, with their defaults.

    An `exact` format reproduces the outputs of the trained model; a reduced one is judged by a metric. `needs`
    are Python packages. Loading a file that is `code` can run whatever was put into it.
    """

    name: str
    file: str
    needs: tuple[str, ...]
    status: Literal["stable", "legacy"] = "stable"
    exact: bool = True
    code: bool = False
    options: Mapping[str, int | str] = field(default_factory=dict)


FORMATS = {
    format.name: format
    for format in (
        Format("onnx", "model.onnx", needs=("onnxscript", "onnxruntime"), options=ONNX_OPTIONS),
        Format("torchscript", "model.pt", needs=("torch",), status="legacy", code=True),
        Format("torch_export", "model.pt2", needs=("torch",), code=True),
        Format(
            "onnx_int8",
            "model.int8.onnx",
            needs=("onnxscript", "onnxruntime"),
            exact=False,
            options={**ONNX_OPTIONS, **CALIBRATION_OPTIONS},
        ),
        Format("onnx_fp16", "model.fp16.onnx", needs=("onnxscript", "onnxruntime"), exact=False, options=ONNX_OPTIONS),
        Format("safetensors", "model.safetensors", needs=("safetensors",)),
    )
}


class Run(Protocol):
    """Maps inputs `(B, ...)` by name to outputs by name."""

    def __call__(self, inputs: Arrays) -> dict[str, Array]: ...


class Exporter(Protocol):
    """The module of a format."""

    def export(self, source: "Source") -> bytes:
        """Returns the contents of the file, with the contract's summary in it."""

    def check(self, path: Path, contract: "Contract") -> None:
        """Raises `GateFailure` for a file that breaks the contract, any error for a damaged one; runs neither."""

    def load(self, path: Path, *, optimize: bool = True, num_threads: int = 1) -> Run:
        """Loads the file on the CPU; `optimize=False` runs the graph as it was written."""


def exporter(format_name: str) -> Exporter:
    return cast(Exporter, import_module(f".{format_name}", __package__))
