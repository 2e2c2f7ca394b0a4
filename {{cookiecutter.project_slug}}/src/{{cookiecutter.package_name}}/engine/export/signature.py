"""The contract of every file of a bundle, independent of its format. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..inference.runtime import SCHEMA_VERSION
from ..inference.tasks import TASKS

if TYPE_CHECKING:
    from ..spec import DataSpec


def verified_batch_sizes(max_batch_size: int) -> list[int]:
    """Returns the batch sizes that the gate tries: 1, odd and even ones, and the largest."""
    return sorted({size for size in (1, 2, 7, 64) if size <= max_batch_size} | {max_batch_size})


class GateFailure(UserError):
    """A file that is not what was trained; nothing of its bundle is published."""

    exit_code = 1


@dataclass(frozen=True)
class TensorSignature:
    """`shape` is without the batch axis, which is dynamic in every tensor; `range` holds the bounds of raw input.

    `columns` are those of a table, as in the DataSpec.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    range: tuple[float, float] | None = None
    columns: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of the manifest, in which -1 stands for the batch axis."""
        entry: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": [-1, *self.shape]}
        if self.range is not None:
            entry["range"] = list(self.range)
        if self.columns:
            entry["columns"] = list(self.columns)
        return entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "TensorSignature":
        bounds = tuple(entry["range"]) if "range" in entry else None
        columns = tuple(entry.get("columns", ()))
        return cls(entry["name"], entry["dtype"], tuple(entry["shape"][1:]), bounds, columns)


@dataclass(frozen=True)
class Signature:
    input: TensorSignature
    outputs: tuple[TensorSignature, ...]

    @classmethod
    def of(cls, spec: "DataSpec") -> "Signature":
        return cls(
            input=TensorSignature("input", spec.input_dtype, spec.input_shape, spec.input_range, spec.columns),
            outputs=tuple(TensorSignature(name, "float32", (spec.num_outputs,)) for name in TASKS[spec.task].outputs),
        )


@dataclass(frozen=True)
class Contract:
    """What a file must be, for the gate before its publication and for `verify` long afterwards."""

    name: str
    signature: Signature
    labels: tuple[str, ...]
    checkpoint_sha256: str
    opset: int  # of the ONNX files
    task: str = "classification"

    @property
    def summary(self) -> dict[str, str]:
        """Returns the metadata in each file: strings only, and nothing that changes from version to version."""
        return {
            "name": self.name,
            "schema_version": str(SCHEMA_VERSION),
            "inputs": json.dumps([self.signature.input.to_dict()], ensure_ascii=False),
            "outputs": json.dumps([tensor.to_dict() for tensor in self.signature.outputs]),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "checkpoint_sha256": self.checkpoint_sha256,
        }

    def check_summary(self, file: str, found: Mapping[str, str]) -> None:
        for key, expected in self.summary.items():
            if found.get(key) != expected:
                raise GateFailure(f"{file} says of itself {key}={found.get(key)}, but it should be {expected}.")

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> "Contract":
        (entry,) = manifest["inputs"]
        outputs = tuple(TensorSignature.from_dict(tensor) for tensor in manifest["outputs"])
        return cls(
            name=manifest["name"],
            signature=Signature(TensorSignature.from_dict(entry), outputs),
            labels=tuple(manifest["labels"]),
            checkpoint_sha256=manifest["checkpoint"]["sha256"],
            opset=manifest["opset"],
            task=manifest["task"],
        )
