"""The module's own loops, run to see what `forward` is called with, and once more with a file in its place."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torchmetrics import Metric

from ..distributed.strategies import OneDeviceStrategy
from ..inference.runtime import batches
from ..inference.signature import Array
from ..training import checkpoints
from ..warning_filters import IGNORED_WARNINGS, ignore_warnings
from .contract import GateFailure
from .formats import Run, exporter
from .network import Call, deployed, description_of, eager, forward_of, restored

NUM_BATCHES = 32  # in which free axes are looked for, and outputs compared
MAX_BYTES = 2**28  # of the inputs that are held in memory for it


@dataclass
class Recording:
    """The calls of `forward` in a loop: `batches` holds arrays by name, `shapes` those of more calls than that."""

    call: Call | None = None
    batches: list[dict[str, Array]] = field(default_factory=list)
    shapes: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, call: Call, tensors: Mapping[str, Tensor]) -> None:
        if self.call is not None and call.inputs != self.call.inputs:
            return  # another use of `forward`, with other arguments
        self.call = self.call or call
        self.shapes.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}
        size = sum(array.nbytes for array in arrays.values())
        if not self.batches and size > MAX_BYTES:
            num_samples = max(2, len(next(iter(arrays.values()))) * MAX_BYTES // size)
            arrays = {name: array[:num_samples] for name, array in arrays.items()}
        if not self.batches or self.num_bytes + size <= MAX_BYTES:
            self.batches.append(arrays)
            self.num_bytes += size


def run_loop(
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    *,
    stage: str = "test",
    callbacks: Sequence[Callback] = (),
    folder: Path | None = None,
    dataloaders: Any = None,
    limit: int | None = None,
) -> dict[str, float]:
    """Runs the loop of the `stage` on the CPU and returns what it logged; with `limit`, of so many batches.

    All metrics begin anew; Lightning itself resets only those that are logged.
    """
    for metric in (part for part in module.modules() if isinstance(part, Metric)):
        metric.reset()
    limits: dict[str, Any] = {} if limit is None else {"limit_test_batches": limit, "limit_val_batches": limit}
    trainer = pl.Trainer(
        strategy=OneDeviceStrategy(torch.device("cpu")),
        accelerator="cpu",
        callbacks=[*callbacks],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **limits,
    )
    run = trainer.validate if stage == "validate" else trainer.test
    if dataloaders is None:
        figures = run(module, datamodule=datamodule, verbose=False)
    else:
        figures = run(module, dataloaders=dataloaders, verbose=False)
    return {name: value for of_loader in figures for name, value in of_loader.items()}


@contextmanager
def forward_replaced(module: pl.LightningModule, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def record(module: pl.LightningModule, run: Callable[[], Any], num_calls: int = NUM_BATCHES) -> Recording:
    """Returns what `forward` is called with while `run` lasts."""
    recording, original = Recording(), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if len(recording.shapes) < num_calls:
            recording.add(*Call.read(module, args, kwargs))
        return original(*args, **kwargs)

    with forward_replaced(module, forward):
        run()
    return recording


def recorded(
    module: pl.LightningModule, datamodule: pl.LightningDataModule, stage: str, num_batches: int = NUM_BATCHES
) -> Recording:
    """Returns the calls of `forward` in the loop of a stage, `test` or `validate`.

    Where the loop is missing or calls something else, the arguments are taken from `deployed()`, or from the batches:
    by name from a dict, in their order from a tuple. Raises `GateFailure` where they cannot be told.
    """
    step, loader = ("validation_step", "val_dataloader") if stage == "validate" else ("test_step", "test_dataloader")
    if not is_overridden(loader, datamodule):
        loader = "train_dataloader"
    elif is_overridden(step, module):
        recording = record(module, lambda: run_loop(module, datamodule, stage=stage, limit=num_batches), num_batches)
        if recording.call is not None:
            return recording
    if (example := from_example(module)) is not None:
        return example
    recording, parameters = Recording(), list(inspect.signature(type(module).forward).parameters)[1:]
    for _, batch in zip(range(num_batches), getattr(datamodule, loader)(), strict=False):
        recording.add(*_from_batch(module, batch, parameters))
    if recording.call is None:
        raise GateFailure(f"{loader} gives no batch, by which the inputs of forward could be known.")
    return recording


def _from_batch(module: pl.LightningModule, batch: Any, names: Sequence[str]) -> tuple[Call, dict[str, Tensor]]:
    if isinstance(batch, Mapping) and all(name in batch for name in names):
        return Call.read(module, (), {name: batch[name] for name in names})
    values = batch if isinstance(batch, tuple | list) else [batch]
    if isinstance(batch, Mapping) or len(values) < len(names) or not all(isinstance(x, Tensor) for x in values):
        raise GateFailure(
            f"{forward_of(module)} is never called by the loops, and its arguments {', '.join(names)} cannot be told "
            "from a batch: call self(...) in test_step, or give example= in deployed()."
        )
    return Call.read(module, values[: len(names)], {})


def from_example(module: pl.LightningModule) -> Recording | None:
    """Returns the arguments of `forward` that `deployed()` gives as an example, if it does."""
    example = description_of(module).example
    if example is None:
        return None
    recording, known = Recording(), list(inspect.signature(type(module).forward).parameters)[1:]
    if unknown := [name for name in example if name not in known]:
        raise GateFailure(
            f"deployed() of {type(module).__name__} gives an example of '{unknown[0]}', which is no parameter of "
            f"{forward_of(module)}: it takes {', '.join(known)}."
        )
    try:
        recording.add(*Call.read(module, (), example))
    except TypeError as error:
        raise GateFailure(f"the example of deployed() does not fit {forward_of(module)}: {error}.") from error
    if any(not tensor.ndim or len(tensor) < 2 for tensor in example.values()):
        raise GateFailure("the example of deployed() holds fewer than two samples: give two or more.")
    return recording


class Artifact:
    """A file, or the network itself, in the place of `forward`; `num_calls` tells whether the loop called it.

    With `moved`, outputs are off by so much, now up and now down.
    """

    def __init__(self, module: pl.LightningModule, run: Run, max_batch_size: int, moved: float = 0.0) -> None:
        self.original, self.module, self.run = module.forward, module, run
        self.result, self.max_batch_size, self.moved = description_of(module).result, max_batch_size, moved
        self.num_calls = 0
        self.like: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _, tensors = Call.read(self.module, args, kwargs)
        self.num_calls += 1
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        found = [self.run(batch) for batch in batches(arrays, self.max_batch_size)]
        joined = {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}
        outputs = {name: torch.from_numpy(self._moved(array)) for name, array in joined.items()}
        if callable(self.result):
            return self.result(outputs)
        if self.result is not None:
            return outputs[self.result]
        if self.like is None:
            with torch.no_grad():
                self.like = self.original(*args, **kwargs)
        return restored(self.like, outputs)

    def _moved(self, array: Array) -> Array:
        if not self.moved or array.dtype.kind != "f":
            return array
        signs = np.where(np.arange(array.size) % 2, 1, -1).reshape(array.shape)
        return (array + self.moved * signs * np.maximum(1, np.abs(array))).astype(array.dtype)


def run_replaced(
    ckpt_path: str,
    data: dict[str, Any],
    call: dict[str, Any],
    max_batch_size: int,
    network: str,
    file: str | None = None,
    moved: float = 0.0,
) -> dict[str, Any]:
    """Runs the test loop once; called in a fresh process, it builds everything from the checkpoint.

    In the place of `forward` stands the `file` of the format that `network` names, or the deployed network in `float32`
    or `float64`; `eager` leaves `forward` as it is. Returns the metrics and the number of calls.
    """
    ignore_warnings(*IGNORED_WARNINGS)
    checkpoint = checkpoints.load(Path(ckpt_path))
    pl.seed_everything(checkpoint.config["seed"], workers=True, verbose=False)
    module, datamodule = checkpoint.model(), checkpoint.datamodule(data)
    if network == "eager":
        return {"metrics": run_loop(module, datamodule), "num_calls": 0}
    if file is not None:
        run = exporter(network).load(Path(file))
    else:
        double = network == "float64"
        trained = deployed(checkpoint.model(), Call.from_dict(call))
        run = eager(trained.double() if double else trained, double=double)
    artifact = Artifact(module, run, max_batch_size, moved)
    with forward_replaced(module, artifact):
        metrics = run_loop(module, datamodule)
    return {"metrics": metrics, "num_calls": artifact.num_calls}
