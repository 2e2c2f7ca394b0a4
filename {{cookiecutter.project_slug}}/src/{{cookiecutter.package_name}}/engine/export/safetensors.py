"""`formats=[safetensors]`: the weights, and beside them what the network is built from; data, not code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from .formats import Run
from .network import Source, deployed, eager
from .signature import Contract


def export(source: Source) -> bytes:
    described = {
        **source.contract.summary,
        "model": json.dumps(source.model_section),
        "spec": json.dumps(source.spec.to_dict(), ensure_ascii=False),
    }
    weights = {name: weight.clone().contiguous() for name, weight in source.network.state_dict().items()}
    return save(weights, metadata=described)


def check(path: Path, contract: Contract) -> None:
    contract.check_summary(path.name, _described(path))


def load(path: Path, *, optimize: bool = True, num_threads: int = 1) -> Run:
    """Nothing optimises it: `optimize` changes nothing."""
    torch.set_num_threads(num_threads)
    return eager(rebuilt(path))


def rebuilt(path: Path) -> nn.Module:
    """The trained network in eager mode, as it is deployed; its code is this project's."""
    from ..spec import DataSpec
    from ..training.build import build_model
    from ..training.checkpoints import refuse_foreign_code

    described = _described(path)
    section = json.loads(described["model"])
    refuse_foreign_code(section, str(path))
    network = deployed(build_model(section, DataSpec.from_dict(json.loads(described["spec"]))))
    network.load_state_dict(load_file(path))
    return network


def _described(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
