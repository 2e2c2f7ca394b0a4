"""The engine: owned by the template, the same in every project, replaced as a whole by an update; see README.md.

The names below are for the project's own code. Each is imported when it is first used, because torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.data_module import InMemoryDataModule as InMemoryDataModule
    from .data.samples import SamplesInMemory as SamplesInMemory
    from .distributed.loss_normalizer import loss_normalizer as loss_normalizer
    from .distributed.randomness import sample_uniform as sample_uniform
    from .errors import UserError as UserError
    from .spec import DataSpec as DataSpec
    from .spec import Deployed as Deployed
    from .spec import Input as Input
    from .spec import Output as Output
    from .training.layers import Normalize as Normalize
    from .training.layers import Segments as Segments
    from .training.losses import CrossEntropy as CrossEntropy

_PLACES = {
    "CrossEntropy": "training.losses",
    "DataSpec": "spec",
    "Deployed": "spec",
    "InMemoryDataModule": "data.data_module",
    "Input": "spec",
    "Normalize": "training.layers",
    "Output": "spec",
    "SamplesInMemory": "data.samples",
    "Segments": "training.layers",
    "UserError": "errors",
    "loss_normalizer": "distributed.loss_normalizer",
    "sample_uniform": "distributed.randomness",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
