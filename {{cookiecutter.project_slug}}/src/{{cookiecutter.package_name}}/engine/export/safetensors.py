"""`formats=[safetensors]`: the weights and the configuration from which the network is built; data, not code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from ..spec import plain_spec, read_spec
from ..training.build import build_model
from ..training.checkpoints import refuse_foreign_code
from .contract import Contract
from .formats import Run
from .network import Call, DeployedNetwork, Source, deployed, eager


def export(source: Source) -> bytes:
    metadata = {
        **source.contract.summary,
        "model": json.dumps(source.model_section),
        "spec": json.dumps(plain_spec(source.spec), ensure_ascii=False),
        "call": json.dumps(asdict(source.network.call)),
    }
    weights = {name: weight.clone().contiguous() for name, weight in source.module.state_dict().items()}
    return save(weights, metadata=metadata)


def check(path: Path, contract: Contract) -> None:
    contract.check_summary(path.name, _metadata(path))


def load(path: Path, *, optimize: bool = True, num_threads: int = 1) -> Run:
    """`optimize` changes nothing: there is no optimiser."""
    torch.set_num_threads(num_threads)
    return eager(rebuilt(path))


def rebuilt(path: Path) -> DeployedNetwork:
    """Builds the trained network in eager mode, as it is deployed, with the code of this project."""
    metadata = _metadata(path)
    section = json.loads(metadata["model"])
    refuse_foreign_code(section, str(path))
    module = build_model(section, read_spec(json.loads(metadata["spec"])))
    module.load_state_dict(load_file(path))
    return deployed(module, Call.from_dict(json.loads(metadata["call"])))


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
