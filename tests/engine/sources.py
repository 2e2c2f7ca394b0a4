"""What exporters and the gate get, made from a module and batches of its inputs, without a run."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from {{ cookiecutter.package_name }}.engine.export.contract import Contract
from {{ cookiecutter.package_name }}.engine.export.gate import Reference
from {{ cookiecutter.package_name }}.engine.export.loops import Recording
from {{ cookiecutter.package_name }}.engine.export.network import (
    Call,
    Source,
    deployed,
    description_of,
    eager,
    forward_of,
    precise,
)
from {{ cookiecutter.package_name }}.engine.export.signature import signature_of
from {{ cookiecutter.package_name }}.engine.inference.runtime import batches, first_samples


class Wrapped(pl.LightningModule):
    """A network as a module without loops, metrics or anything else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def recording_of(given: Sequence[dict[str, Tensor]]) -> Recording:
    recording = Recording()
    for batch in given:
        recording.add(Call(tuple(batch)), batch)
    return recording


def source_of(
    module: pl.LightningModule, given: Sequence[dict[str, Tensor]], max_batch_size: int = 64, call: Call | None = None
) -> Source:
    recording = recording_of(given)
    recording.call = call or recording.call
    assert recording.call is not None
    network, described = deployed(module.eval(), recording.call), description_of(module)
    signature = signature_of(eager(network), recording, described, forward_of(module), max_batch_size)
    contract, first = Contract("made", signature, "0" * 64, opset=18), recording.batches[0]
    return Source(
        module=module,
        network=network,
        example=first_samples(first, 2),
        contract=contract,
        options={},
        model_section={},
        spec=None,
        calibration=lambda num_samples: batches(first_samples(first, num_samples), 20),
    )


def reference_of(source: Source, given: Sequence[dict[str, Tensor]], max_batch_size: int = 64) -> Reference:
    real = recording_of(given).batches
    exact = precise(source.network, real[0])
    return Reference.of(eager(source.network), exact, source.contract.signature, real, max_batch_size)
