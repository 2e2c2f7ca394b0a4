"""Tries whether a network can be exported before it is trained for days."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import one_line
from ..inference.runtime import difference
from ..inference.tasks import TASKS
from ..spec import DataSpec
from ..training.build import build_model
from .formats import FORMATS, ONNX_OPTIONS, Array, exporter
from .gate import check_structure, precise, refuse_above, refuse_dependence
from .network import Source, deployed, eager
from .pipeline import exported
from .signature import Contract, GateFailure, Signature

log = logging.getLogger(__name__)

REHEARSED = ("onnx", "torchscript")
TOLERANCE = 1e-4  # weights are untrained here: only a graph that computes something else should fail


def rehearse(is_required: bool, model_section: Mapping[str, Any], spec: Any, inputs: Array) -> None:
    """Exports an untrained network, and runs its files on `inputs`, which are two samples or more.

    What cannot be exported is reported; with `is_required` it raises `GateFailure`.
    """
    started = time.perf_counter()
    try:
        _rehearse(deployed(build_model(model_section, spec), spec), model_section, spec, inputs)
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


def _rehearse(network: torch.nn.Module, model_section: Mapping[str, Any], spec: DataSpec, inputs: Array) -> None:
    contract = Contract("rehearsal", Signature.of(spec), spec.labels, "", int(ONNX_OPTIONS["opset"]), spec.task)
    example = torch.from_numpy(inputs[:2]).clone(memory_format=torch.contiguous_format)
    source = Source(network, example, contract, {}, model_section, spec, lambda num_samples: inputs)
    expected = eager(network)(inputs)
    refuse_dependence(precise(network, eager, inputs), inputs, [2, len(inputs)], "first batch")
    with tempfile.TemporaryDirectory() as folder:
        for name in REHEARSED:
            path = Path(folder, FORMATS[name].file)
            path.write_bytes(exported(name, source))
            check_structure(name, path, contract)
            outputs = exporter(name).load(path)(inputs)
            for what, output, right in zip(TASKS[spec.task].outputs, outputs, expected, strict=True):
                refuse_above(TOLERANCE, path, difference(output, right), f"{what} of the first batch")
