"""The figures of an epoch: the same on every rank, and found by what monitors them."""

import inspect
import logging
import zlib
from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from ...errors import UserError

log = logging.getLogger(__name__)

ARGUMENTS = tuple(inspect.signature(pl.LightningModule.log).parameters)[3:]  # after self, the name and the value
OUTCOME = "the best checkpoint is the last one, and the training does not stop early"


class EpochValues(Callback):
    """Averages over all samples of all ranks what a step logs for the epoch, whether or not it sets `sync_dist`.

    Values of single steps are left as they are. A number that a hook at the end of the epoch logs without `sync_dist`,
    and that differs between ranks, raises `UserError`: it was computed from the samples of one rank alone.
    """

    def __init__(self, followed: Mapping[str, str | None] = MappingProxyType({})) -> None:
        self.followed = dict(followed)  # what is monitored in place of a figure that the model does not log

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._follow(trainer)  # before Lightning looks for the state of each callback by what it monitors
        for callback in trainer.early_stopping_callbacks:
            callback.strict = False  # there may be no validation; what one does not log is reported after it
        if "log" not in vars(pl_module):
            object.__setattr__(pl_module, "log", _Log(trainer, pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.__dict__.pop("log", None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Computes each value over all ranks; `_results` is private in Lightning 2.6."""
        _refuse_different_names(trainer)
        for result in trainer._results.values() if trainer.world_size > 1 else ():  # type: ignore[union-attr]
            sync = result.meta.sync
            if result.is_tensor and result.meta.on_epoch and not result.has_reset and not sync.rank_zero_only:
                should, result._computed = sync.should, None
                sync.should = True
                result.compute()  # Lightning takes the cached value
                sync.should = should  # Lightning compares it with that of the next call of `self.log`

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Lightning synchronises the values after the last batch of each loader, before it calls other hooks."""
        batch_idx, dataloader_idx = args[3], args[4] if len(args) > 4 else 0
        if batch_idx + 1 == trainer._evaluation_loop.max_batches[dataloader_idx]:
            _refuse_different_names(trainer)

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds figures that are monitored and were not logged; says what happens where there is no such figure."""
        logged = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith("lr-")}
        for callback in () if trainer.sanity_checking else _monitoring(trainer):
            wanted = callback.monitor
            if wanted in (None, *logged, *self.followed):
                continue
            self.followed[wanted] = other = wanted.replace("/", "_") if wanted.replace("/", "_") in logged else None
            if other is None and trainer.is_global_zero:
                names = ", ".join(sorted(logged)) or "nothing"
                log.warning("warning     the model logs %s, and not %s, which is monitored: %s", names, wanted, OUTCOME)
        self._follow(trainer)

    def _follow(self, trainer: pl.Trainer) -> None:
        for callback in _monitoring(trainer):
            if callback.monitor in self.followed:
                found = self.followed[callback.monitor]
                if found is None and isinstance(callback, EarlyStopping):
                    callback.verbose = False
                else:
                    callback.monitor = found

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["followed"] = self.followed


class _Log:
    """Takes the place of `LightningModule.log`; what is private of Lightning 2.6 is named here and nowhere else."""

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.trainer, self.module, self.original = trainer, module, module.log
        self.known: dict[str, Any] = {}  # options, collection and result of a call before

    def __call__(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        options |= dict(zip(ARGUMENTS, args, strict=False))
        batch_size = options.pop("batch_size", None)
        hook, is_synced = str(self.module._current_fx_name), options.get("sync_dist") or options.get("rank_zero_only")
        key, results = f"{hook}.{name}", self.trainer._results
        is_in_step = hook.endswith("_step") and results is not None and results.dataloader_idx is None
        if is_in_step and self._has_added(key, value, batch_size, options):
            return
        given = dict(options)
        if self.trainer.world_size > 1 and not is_synced:
            if hook.endswith("_epoch_end"):
                _refuse_differing(self.trainer, self.module, name, value)
            elif self.trainer.evaluating and options.get("on_epoch") is not False:
                options["sync_dist"] = True  # Lightning reads the value of the epoch before any hook
        num_known = len(results or ())
        self.original(name, value, batch_size=batch_size, **options)
        if results is not None and len(results) > num_known:
            in_order = sorted(results.items())  # Lightning synchronises one after the other, and ranks may log in any
            results.clear()
            results.update(in_order)
        if is_in_step:
            assert results is not None
            self.known[key] = given, results, results.get(key)

    def _has_added(self, key: str, value: Any, batch_size: int | None, options: dict[str, Any]) -> bool:
        """Adds the value to what an equal call has logged before in this epoch, if there is such a call.

        It takes a tenth of the time of Lightning's own way, which checks and copies all options each time.
        """
        before, results, result = self.known.get(key, (None, None, None))
        connector = self.trainer._logger_connector
        is_new = connector._first_loop_iter or connector._current_fx != key.partition(".")[0] or result is None
        if is_new or before != options or results is not self.trainer._results:
            return False
        if isinstance(value, torch.Tensor):
            if not result.is_tensor or value.numel() != 1 or value.device != result.value.device:
                return False
            value = value.detach().reshape(())
        elif value is not result.value:
            return False
        assert results is not None
        num_samples = results._extract_batch_size(result, batch_size, result.meta)
        results.update_metrics(key, value, num_samples)
        return True


def _refuse_different_names(trainer: pl.Trainer) -> None:
    """All ranks have to synchronise the same values: one that waits for another's would wait for ever."""
    if trainer.world_size == 1:
        return
    results = trainer._results.items()  # type: ignore[union-attr]
    names = [key for key, result in results if result.meta.on_epoch and not result.meta.sync.rank_zero_only]
    checksum = torch.tensor(zlib.crc32(repr(names).encode()), device=trainer.strategy.root_device)
    if trainer.strategy.reduce(checksum.clone(), reduce_op="sum") == checksum * trainer.world_size:
        return
    of_ranks: list[list[str]] = [names] * trainer.world_size
    torch.distributed.all_gather_object(of_ranks, names)
    some = {name for name in chain(*of_ranks) if not all(name in own for own in of_ranks)}
    raise UserError(
        f"'{min(some).partition('.')[2]}' was logged by some processes only: log it in each step, with the number of "
        "its samples as batch_size=, which may be 0; or update a torchmetrics object, and log that in each step."
    )


def _monitoring(trainer: pl.Trainer) -> list[Any]:
    return [*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks]


def _refuse_differing(trainer: pl.Trainer, module: pl.LightningModule, name: str, value: Any) -> None:
    if not isinstance(value, int | float | torch.Tensor) or (isinstance(value, torch.Tensor) and value.numel() != 1):
        return
    own = torch.as_tensor(value, device=module.device).detach().double().reshape(())
    lowest, highest = (trainer.strategy.reduce(own.clone(), reduce_op=op) for op in ("min", "max"))
    if lowest < highest:
        raise UserError(
            f"'{name}' was never synchronised: it is {lowest:.6g} on one rank and {highest:.6g} on another. Log the "
            "torchmetrics object in place of its value, or log the values of the steps; for what processes have each "
            "their own, as a time, give sync_dist=True for its mean, or rank_zero_only=True."
        )
