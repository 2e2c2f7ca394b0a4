"""`strategy=single`, `dp`, `ddp` and `fsdp` as Lightning strategies, for the processes that are already there."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from ..config.validation import read_options
from ..errors import UserError, nearest
from .batch_norm import SyncBatchNorm, count_samples
from .dealing import DealtLoader, Part, Share, deal
from .devices import Devices
from .loss_normalizer import Count, normalized_by
from .randomness import IN_A_TRANSFER, Rows, StepRandomness, batch_size, replica_rows

log = logging.getLogger(__name__)

Compression = Literal["none", "fp16", "bf16", "powersgd"]


@dataclass(frozen=True)
class OneProcess:
    """`strategy=single` and `strategy=dp` have no options."""

    name: str
    max_restarts = 0


@dataclass(frozen=True)
class Ddp:
    """The options of `strategy/ddp.yaml`."""

    name: str
    find_unused_parameters: bool
    gradient_as_bucket_view: bool
    static_graph: bool
    bucket_cap_mb: int
    compression: Compression
    powersgd_rank: int
    powersgd_start_step: int
    max_restarts: int

    def __post_init__(self) -> None:
        _check_minimum(self, bucket_cap_mb=1, powersgd_rank=1, powersgd_start_step=2, max_restarts=0)


@dataclass(frozen=True)
class Fsdp:
    """The options of `strategy/fsdp.yaml`."""

    name: str
    min_num_weights: int
    layer_classes: list[str] | None
    activation_checkpointing: bool
    cpu_offload: bool
    max_restarts: int

    def __post_init__(self) -> None:
        _check_minimum(self, min_num_weights=1, max_restarts=0)


def _check_minimum(options: object, **minimums: int) -> None:
    for name, minimum in minimums.items():
        if getattr(options, name) < minimum:
            raise UserError(f"strategy.{name}={getattr(options, name)} is out of range: give {minimum} or more.")


StrategyOptions = OneProcess | Ddp | Fsdp
OPTIONS: dict[str, type] = {"single": OneProcess, "dp": OneProcess, "ddp": Ddp, "fsdp": Fsdp}


def strategy_options(section: Mapping[str, Any]) -> StrategyOptions:
    """The options of the strategy; refuses an unknown strategy, unknown options and wrong types."""
    name = section.get("name")
    if name not in OPTIONS:
        raise UserError(f"strategy.name={name} is no option; {nearest(str(name), OPTIONS)}")
    known = OPTIONS[name].__annotations__
    for key in section.keys() - known.keys():
        raise UserError(f"'strategy.{key}' is no option; {nearest(key, known, 'strategy')}")
    options: StrategyOptions = read_options(dict(section), OPTIONS[name], "strategy")
    return options


def build_strategy(options: StrategyOptions, devices: Devices, finds_unused: bool = False) -> Strategy:
    """The Lightning strategy of a process; `finds_unused` sets ddp's `find_unused_parameters` whatever the options."""
    if options.name == "dp":
        return DataParallelStrategy(devices.to_torch())
    if isinstance(options, OneProcess) or devices.num_devices == 1:
        return OneDeviceStrategy(devices.to_torch()[0])
    if isinstance(options, Fsdp):
        from .fully_sharded import FullyShardedStrategy  # it builds on this module

        return FullyShardedStrategy(options, devices)
    return DistributedDataParallelStrategy(
        options.compression,
        options.powersgd_rank,
        options.powersgd_start_step,
        find_unused_parameters=options.find_unused_parameters or finds_unused,
        gradient_as_bucket_view=options.gradient_as_bucket_view,
        static_graph=options.static_graph,
        bucket_cap_mb=options.bucket_cap_mb,
    )


class DealingStrategy(Strategy):
    """Deals ordinary DataLoaders to the processes, and weights their parts of a batch by the number of samples."""

    num_replicas = 1  # in this process

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Which the loaders of an evaluation and of the training have delivered since their last step. A training batch
        # may be followed by an evaluation and no step: `on_train_batch_start` ends an epoch by returning -1.
        self.parts: tuple[dict[int, Part], dict[int, Part]] = {}, {}
        self.batch_size: int | None = None  # samples of an optimiser step, if the configuration says it
        self.skips_nonfinite = False  # whether a batch whose loss is NaN or infinite leaves no trace in the figures
        self.weight = 1.0  # of the loss, so that the gradient is that of the whole batch on one device
        self.is_weighted = False  # whether a backward pass has taken the weight in this step
        self.normalizers: list[Tensor] = []  # of this batch, one for each call of `loss_normalizer` in its first part
        self.sample_dropout = True  # whether dropout is the same however a batch is split; else it is torch's own
        self.randomness = StepRandomness()

    @property
    def trainer(self) -> pl.Trainer:
        assert self.lightning_module is not None
        return self.lightning_module.trainer

    def process_dataloader(self, dataloader: object) -> object:
        trainer, stage = self.trainer, self.trainer.state.stage
        assert stage is not None
        share = Share(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
        if stage == RunningStage.PREDICTING:
            if share.world_size > 1:
                raise UserError("trainer.predict would predict each sample in every process: take strategy=single.")
            return dataloader
        prefix = stage.dataloader_prefix
        limit, name = getattr(trainer, f"limit_{prefix}_batches"), f"{prefix}_dataloader"
        batch_size = self.batch_size if stage == RunningStage.TRAINING else None
        return deal(dataloader, share, name, limit, self.parts[trainer.training], self._total, batch_size)

    def on_train_start(self) -> None:
        """Refuses a DataModule that does not take the batch size by which the run was planned."""
        super().on_train_start()
        loader = self.trainer.train_dataloader
        found = loader.batches.source.batch_size if isinstance(loader, DealtLoader) else None
        if None not in (self.batch_size, found) and found != self.batch_size:
            raise UserError(
                f"data.batch_size={self.batch_size}, but train_dataloader gives batches of {found}: let the DataModule "
                "take a batch_size and pass it to its DataLoader."
            )

    def _total(self, number: Any) -> Any:
        dtype = torch.float64 if isinstance(number, float) else torch.int64
        return self.reduce(torch.tensor(number, dtype=dtype, device=self.root_device), reduce_op="sum").item()

    @property
    def num_parts(self) -> int:
        """Of a batch; over these the gradients are averaged."""
        return self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def is_split(self) -> bool:
        return self.num_parts * self.num_replicas > 1

    def batch_to_device(self, *args: Any, **kwargs: Any) -> Any:
        watch = self.randomness.watch(self.trainer, "on_after_batch_transfer", IN_A_TRANSFER)
        with watch if self.is_split else nullcontext():
            return super().batch_to_device(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.is_weighted, num_steps, trainer = False, self.trainer.global_step, self.trainer
        output = self._step(super().training_step, *args, **kwargs)
        if trainer.lightning_module.automatic_optimization:
            if output is None and trainer.world_size > 1:
                raise UserError(
                    "training_step returned None, and the other processes would wait for this one: return a loss "
                    "that counts nothing, such as 0 * loss."
                )
        elif self.weight != 1 and trainer.global_step > num_steps and not self.is_weighted:
            raise UserError(
                "training_step calls loss.backward(), which counts all parts of a batch alike, whatever their number "
                "of samples: call self.manual_backward(loss)."
            )
        return output

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._step(super().validation_step, *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._step(super().test_step, *args, **kwargs)

    def _step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        trainer, num_parts, is_training = self.trainer, self.num_parts, self.trainer.training
        parts = list(self.parts[is_training].values())
        self.parts[is_training].clear()
        weights = {part.num_own * num_parts / part.num_whole for part in parts}
        has_stream = len(parts) > 1 and not all(part.indices for part in parts)
        if num_parts > 1 and is_training and not weights:
            raise UserError("training_step(dataloader_iter) hides the size of a batch: take the batch as its argument.")
        if has_stream or (len(weights) > 1 and (is_training or 0 in weights)):
            raise UserError(
                f"the loaders of a CombinedLoader cut their batches into {num_parts} parts of different shares, and no "
                f"weight is right: give each a length, a batch_size that {num_parts} divides, and drop_last=True."
            )
        self.weight = weights.pop() if weights else 1.0
        if len(parts) == 1:  # private in Lightning 2.6: else it would take the length of the first tensor
            trainer._results.batch_size = parts[0].num_own  # type: ignore[union-attr]
        count_samples(bool(self.weight))
        is_undone = not self.weight or (self.skips_nonfinite and is_training)
        undo = remember(trainer, is_stand_in=not self.weight) if is_undone else None
        if self.sample_dropout:
            places = [part.places if is_training else tuple(part.indices) for part in parts]
            self.randomness.step(trainer, args[0], places, self.is_split)
        is_watched = self.is_split and (self.sample_dropout or not is_training)
        if is_training and trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches == 0:
            self.normalizers.clear()
        with (
            normalized_by(_Normalizer(self, parts)) if is_training else nullcontext(),
            nullcontext() if self.weight else isolate_rng(),
            self.randomness.watch(trainer, step.__name__) if is_watched else nullcontext(),
        ):
            output = step(*args, **kwargs)
        if not is_training:
            self.randomness.pause()
        if undo is not None and (not self.weight or self._is_nonfinite(output)):
            undo()
        return output

    def _is_nonfinite(self, output: Any) -> bool:
        """Whether the loss of a rank is NaN or infinite, known to all ranks: none of them counts its samples."""
        loss = output["loss"] if isinstance(output, Mapping) else output
        is_bad = isinstance(loss, Tensor) and not torch.isfinite(loss).all()
        return bool(self.reduce(torch.tensor(int(is_bad), device=self.root_device), reduce_op="max"))

    def averaged_tensors(self) -> dict[str, Tensor]:
        """The weights, and the buffers of a checkpoint that hold numbers with a fraction, by name."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict(keep_vars=True)
        return {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}

    def gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """Whole tensors in the place of shards, on rank 0."""
        return state

    def teardown(self) -> None:
        self.randomness.close()
        super().teardown()

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        self.is_weighted = True
        if self.weight != 1:
            closure_loss = closure_loss * self.weight
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Lightning 2.6 truncates the mean of its batch sizes over the ranks, such as 33 / 2 to 16."""
        is_distributed = torch.distributed.is_initialized()
        if is_distributed and reduce_op == "mean" and isinstance(tensor, Tensor) and not tensor.is_floating_point():
            tensor = tensor.double()
        return super().reduce(tensor, group, reduce_op)  # type: ignore[safe-super]


class _Normalizer:
    """`loss_normalizer` in a training step of this process."""

    def __init__(self, strategy: DealingStrategy, parts: list[Part]) -> None:
        self.strategy, self.parts, self.num_calls = strategy, parts, 0

    def __call__(self, batch: Any, count: Count) -> Tensor:
        """The count of the whole batch, times the share of its samples that the weight of this part contains."""
        strategy, trainer = self.strategy, self.strategy.trainer
        number, self.num_calls = self.num_calls, self.num_calls + 1
        place = trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches
        if place == 0:
            own = count(batch) if strategy.weight else 0
            dtype = torch.float32 if strategy.root_device.type == "mps" else torch.float64  # which mps does not have
            total = torch.as_tensor(own, dtype=dtype, device=strategy.root_device).detach().clone()
            if trainer.accumulate_grad_batches > 1:
                total += sum(float(count(rest)) for rest in self._rest())
            strategy.normalizers.append(strategy.reduce(total, reduce_op="sum"))
        elif number >= len(strategy.normalizers):
            raise UserError("training_step calls loss_normalizer in some micro-batches only: call it in each.")
        part = self.parts[0] if self.parts else None
        return strategy.normalizers[number] * (part.num_own / part.num_whole if part and part.num_own else 1)

    def _rest(self) -> list[Any]:
        """The micro-batches of this process that follow, but for those without a sample."""
        loader = self.strategy.trainer.train_dataloader
        if not isinstance(loader, DealtLoader):
            raise UserError("loss_normalizer cannot see the micro-batches of several loaders: leave them out.")
        return [batch for part, batch in loader.rest_of_batch() if part.num_own]


def remember(trainer: pl.Trainer, is_stand_in: bool) -> Callable[[], None]:
    """Returns a function that undoes the traces of the step that comes next.

    It restores buffers, metrics, logged values and what the module keeps in its attributes. In a step that this process
    runs without a sample of its own, the statistics of a SyncBatchNorm are those of the other processes, and stay.
    """
    module, restore = trainer.lightning_module, list[Callable[[], Any]]()
    results: Any = trainer._results  # private in Lightning 2.6: what `self.log` was given in this epoch
    known = set(results)
    metrics = [part for part in module.modules() if isinstance(part, Metric)]
    layers = [layer for layer in module.modules() if not (is_stand_in and isinstance(layer, SyncBatchNorm))]
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    for value in (*buffers, *(vars(part) for part in (module, *metrics, *results.values()))):
        _snapshot(value, restore)
    return partial(_undo, results, known, metrics, restore)


def _undo(results: Any, known: set[str], metrics: list[Metric], restore: list[Callable[[], Any]]) -> None:
    logged = {name: result for name, result in results.items() if not result.has_reset}
    outdated = [part for part in (*metrics, *results.values()) if part._computed is None]
    for name, result in logged.items():
        if name not in known and result.is_tensor:
            result.reset()
    for each in restore:
        each()
    # All ranks must compute and reduce the same values at the end of the epoch.
    for result in logged.values():
        result.has_reset = False
    for part in outdated:
        part._computed = None


def _snapshot(value: Any, restore: list[Callable[[], Any]]) -> None:
    """Adds what restores a tensor or a container in place, because others refer to the same object.

    Weights are left alone: with manual optimisation, the step itself has changed them.
    """
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        # By `data`, because the backward pass may still need the tensor.
        restore.append(partial(lambda tensor, before: tensor.data.copy_(before), value, value.detach().clone()))
    elif isinstance(value, np.ndarray):
        restore.append(partial(np.copyto, value, value.copy()))
    elif isinstance(value, dict | list | deque | set):
        refill = value.extend if isinstance(value, list | deque) else value.update
        restore += [value.clear, partial(refill, value.copy())]
        for each in [*value.values()] if isinstance(value, dict) else value:
            _snapshot(each, restore)


class OneDeviceStrategy(DealingStrategy, SingleDeviceStrategy):
    """One device, one process."""

    restore_checkpoint_after_setup = True  # else weights in double precision would pass through single


class DataParallelStrategy(OneDeviceStrategy):
    """One process that scatters each batch over `devices` and gathers the outputs on the first.

    DataParallel wraps the module's `forward` only: loss, metrics and logging happen once, on the first device. The
    module tree stays as it is, so checkpoints and exports do not change.
    """

    def __init__(self, devices: list[torch.device]) -> None:
        super().__init__(device=devices[0])
        self.devices, self.num_replicas = devices, len(devices)
        if len(devices) == 1:
            log.warning("strategy=dp has one device (%s) and changes nothing there.", devices[0])

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        if len(self.devices) == 1:
            return
        assert self.lightning_module is not None
        replicated = _Replicated(
            _ForwardOnly(self.lightning_module, self.root_device.type), [d.index for d in self.devices]
        )
        # Not by nn.Module's own __setattr__: the module must not become a part of itself.
        object.__setattr__(self.lightning_module, "forward", replicated)

    def teardown(self) -> None:
        if self.lightning_module is not None:
            self.lightning_module.__dict__.pop("forward", None)
        super().teardown()


class _ForwardOnly(nn.Module):
    """Calls the `forward` of the module's class on a replica, not the DataParallel that replaces it on the instance."""

    def __init__(self, module: pl.LightningModule, device_type: str) -> None:
        super().__init__()
        self.module = module
        self.device_type = device_type
        self.rows: Rows | None = None  # of a replica

    def capture_context(self) -> None:
        """Captures autocast and inference mode, which the thread of a replica does not inherit from its caller."""
        kind = self.device_type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self.autocast = partial(torch.autocast, kind, dtype=dtype, enabled=enabled, cache_enabled=False)
        # Not inference_mode(False): that switches gradients on.
        self.inference = torch.inference_mode if torch.is_inference_mode_enabled() else nullcontext

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.autocast(), self.inference(), replica_rows(self.rows):
            return type(self.module).forward(self.module, *args, **kwargs)


class _Replicated(nn.DataParallel[_ForwardOnly]):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.module.capture_context()
        return super().forward(*args, **kwargs)

    def parallel_apply(self, replicas: Sequence[_ForwardOnly], inputs: Sequence[Any], kwargs: Any) -> list[Any]:
        sizes = [batch_size(scattered) for scattered in zip(inputs, kwargs, strict=True)]
        for number, replica in enumerate(replicas):
            replica.rows = Rows(sum(sizes[:number]), sum(sizes[: number + 1]), sum(sizes))
        return super().parallel_apply(replicas, inputs, kwargs)


class DistributedDataParallelStrategy(DealingStrategy, DDPStrategy):
    """DistributedDataParallel, with optional compression of the gradients that the ranks exchange.

    PowerSGD (Vogels et al., 2019, arXiv:1905.13727) sends a low-rank approximation and adds its error to the gradient
    of the next step; it begins after `start_step` steps.
    """

    restore_checkpoint_after_setup = True  # else weights in double precision would pass through single

    def __init__(self, compression: Compression, powersgd_rank: int, start_step: int, **options: Any) -> None:
        super().__init__(**options)
        self.compression = compression
        self.powersgd = partial(
            PowerSGDState, process_group=None, matrix_approximation_rank=powersgd_rank, start_powerSGD_iter=start_step
        )

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.broadcast_buffers = has_changing_buffers(self.model)
        # Not by Lightning's own option, which silently leaves the hook out on the CPU.
        if self.compression == "fp16":
            self.model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif self.compression == "bf16":
            self.model.register_comm_hook(None, default_hooks.bf16_compress_hook)
        elif self.compression == "powersgd":
            self.model.register_comm_hook(self.powersgd(), powerSGD_hook)


def has_changing_buffers(model: nn.Module) -> bool:
    """Whether rank 0 must send its buffers to the other ranks in each step, such as those of BatchNorm."""
    return any(
        not getattr(part, "has_constant_buffers", False)
        for part in model.modules()
        for _ in part.buffers(recurse=False)
    )


def local_shards(tensors: Iterable[Any]) -> list[Tensor]:
    """The tensors, and of those that are sharded the part of this rank."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Removes Lightning's handler for SIGTERM, which waits for all ranks: a rank that is signalled alone would hang.

    The callback `LastCheckpoint` handles signals instead. Both attributes are private in Lightning 2.6.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
