"""The contract of every file of a bundle, independent of its format."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..inference.runtime import SCHEMA_VERSION
from ..inference.signature import Signature


def verified_batch_sizes(max_batch_size: int) -> list[int]:
    """Returns the batch sizes that the gate tries: 1, odd and even ones, and the largest."""
    return sorted({size for size in (1, 2, 7, 64) if size <= max_batch_size} | {max_batch_size})


class GateFailure(UserError):
    """A file that is not what was trained; nothing of its bundle is published."""

    exit_code = 1


@dataclass(frozen=True)
class Contract:
    """What a file must be, for the gate before its publication and for `verify` long afterwards."""

    name: str
    signature: Signature
    checkpoint_sha256: str
    opset: int  # of the ONNX files

    @property
    def summary(self) -> dict[str, str]:
        """Returns the metadata in each file: strings only, and nothing that changes from version to version."""
        tensors = {"inputs": self.signature.inputs, "outputs": self.signature.outputs}
        described = {
            kind: json.dumps([tensor.to_dict() for tensor in of_kind], ensure_ascii=False)
            for kind, of_kind in tensors.items()
        }
        return {
            "name": self.name,
            "schema_version": str(SCHEMA_VERSION),
            **described,
            "checkpoint_sha256": self.checkpoint_sha256,
        }

    def check_summary(self, file: str, found: Mapping[str, str]) -> None:
        for key, expected in self.summary.items():
            if found.get(key) != expected:
                raise GateFailure(
                    f"{file} says of itself {key}={str(found.get(key))[:300]}, but it should be {expected[:300]}."
                )

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> "Contract":
        sha256 = manifest["checkpoint"]["sha256"]
        return cls(manifest["name"], Signature.of_manifest(manifest), sha256, manifest["opset"])


def names_in(summary: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Returns the names of the inputs and of the outputs that a file says of itself."""
    inputs, outputs = ([tensor["name"] for tensor in json.loads(summary[kind])] for kind in ("inputs", "outputs"))
    return inputs, outputs
