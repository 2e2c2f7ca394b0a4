"""`formats=[onnx_int8]`: weights and activations of 8 bits, calibrated on samples of the training split."""

from __future__ import annotations

import io
import logging
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from ..inference.signature import Array
from .contract import Contract, GateFailure
from .onnx import check_model, export_model, load, serialized

if TYPE_CHECKING:
    from .network import Source

__all__ = ["check", "export", "load"]

# Operators with weights; the rest stays in float32, above all softmax and normalisation.
QUANTIZED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def export(source: Source) -> bytes:
    """Quantizes statically as by Jacob et al. (2018, arXiv:1712.05877), one scale for each channel of the weights."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = source.calibration(source.options["num_calibration_samples"])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    logging.getLogger().addFilter(_is_not_advice)
    try:
        # Some calibration methods print what they do.
        with tempfile.TemporaryDirectory(prefix="int8-") as scratch, redirect_stdout(io.StringIO()):
            quantized = Path(scratch, "quantized.onnx")
            quantize_static(
                export_model(source),
                quantized,
                Samples(),
                op_types_to_quantize=QUANTIZED,
                per_channel=True,
                calibrate_method=methods[source.options["calibration"]],
            )
            return serialized(onnx.load(quantized), source)
    finally:
        logging.getLogger().removeFilter(_is_not_advice)


def check(path: Path, contract: Contract) -> None:
    model = check_model(path, contract)
    if not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer):
        raise GateFailure(f"{path.name} holds no weight of 8 bits: the network has none of {', '.join(QUANTIZED)}.")


def _is_not_advice(record: logging.LogRecord) -> bool:
    """ONNX Runtime advises to simplify the graph first, which torch's exporter has done."""
    return "pre-processing before quantization" not in record.getMessage()
