"""`strategy=fsdp`: FSDP2, which shards weights, gradients and optimizer state over the processes."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint
from torchmetrics import Metric

from ..errors import UserError, nearest, one_line
from .devices import Devices
from .strategies import DealingStrategy, Fsdp, has_changing_buffers

# They use the weights of the layers within them without calling these.
OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
# Their own class is replaced by the engine while a model trains, or they are never called.
NEVER_ALONE = (nn.MultiheadAttention, _BatchNorm, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class _RoutedSteps(ModelParallelStrategy):
    """Runs each step in a call of the sharded module, whose hooks gather the weights that lie at its root.

    A step that called a layer by itself would meet shards. Under manual optimisation the children of the module are
    sharded instead, because the first backward pass of a step would drop the gathered weights of the module.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        module = self.lightning_module
        assert module is not None
        if module.trainer.fit_loop.epoch_loop.batch_idx == 0 and isinstance(module, FSDPModule):
            # Not by nn.Module's own __setattr__, and only in the first batch of each epoch.
            object.__setattr__(module, "training_step", partial(_refusing_writes, module, module.training_step))
        try:
            with self.precision_plugin.train_step_context():
                return self._routed("training_step", *args, **kwargs)
        finally:
            vars(module).pop("training_step", None)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.val_step_context():
            return self._routed("validation_step", *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.test_step_context():
            return self._routed("test_step", *args, **kwargs)

    def _routed(self, name: str, *args: Any, **kwargs: Any) -> Any:
        module = self.lightning_module
        assert module is not None
        if has_changing_buffers(module):  # as DistributedDataParallel does
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)
        try:
            if not isinstance(module, FSDPModule):
                return getattr(module, name)(*args, **kwargs)
            return self._forward_redirection(module, module, name, *args, **kwargs)
        except RuntimeError as error:
            if "mixed torch.Tensor and DTensor" not in str(error):
                raise
            raise UserError(
                f"{name} uses weights of a part of the network without calling that part, and strategy=fsdp gathers "
                "weights when a part is called: call it, or name larger parts with strategy.layer_classes=."
            ) from error


def _refusing_writes(module: pl.LightningModule, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs a training step; FSDP2 drops gathered weights after it, and what was written into them."""
    gathered = [weight for weight in module.parameters() if not isinstance(weight, DTensor)]
    before = [weight.detach().double().abs().sum().nan_to_num() for weight in gathered]
    output = step(*args, **kwargs)
    after = [weight.detach().double().abs().sum().nan_to_num() for weight in gathered]
    if any(then != now for then, now in zip(before, after, strict=True)):
        raise UserError(
            "training_step writes into weights, which strategy=fsdp drops after the step: write into them in "
            "on_train_batch_end, as for the average of a teacher."
        )
    return output


class FullyShardedStrategy(DealingStrategy, _RoutedSteps):
    """Shards a module over `devices` (FSDP2); a checkpoint holds whole tensors, as those of the other strategies."""

    _layer_sync: Any = None  # set by Lightning's connector where the attribute exists

    def __init__(self, options: Fsdp, devices: Devices) -> None:
        offloads_from_gpu = options.cpu_offload and devices.accelerator == "gpu"
        super().__init__(
            data_parallel_size=devices.num_devices,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            # Gradients that lie in the memory of the host are clipped there.
            process_group_backend="cpu:gloo,cuda:nccl" if offloads_from_gpu else None,
        )
        self.options, self.offloads_from_gpu = options, offloads_from_gpu
        self.checkpointed: list[nn.Module] = []

    def setup_environment(self) -> None:
        """Lightning calls `configure_model` before `setup`, and again before a test."""
        super().setup_environment()
        module = self.lightning_module
        assert module is not None
        own = module.configure_model if is_overridden("configure_model", module) else None

        def configure_model() -> None:
            if own is not None:
                own()
            if not any(isinstance(part, FSDPModule) for part in module.modules()):
                self._shard(module)

        # Not by nn.Module's own __setattr__, and only while the run lasts.
        object.__setattr__(module, "configure_model", configure_model)

    def _shard(self, module: pl.LightningModule) -> None:
        if self._layer_sync is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._layer_sync.apply(module)
        metrics = [part for part in module.modules() if isinstance(part, Metric)]
        policy = CPUOffloadPolicy(pin_memory=self.offloads_from_gpu) if self.options.cpu_offload else OffloadPolicy()
        shard = partial(
            fully_shard,
            mesh=self.device_mesh["data_parallel"],
            offload_policy=policy,
            ignored_params={weight for metric in metrics for weight in metric.parameters()},
        )
        if scalar := next((name for name, weight in module.named_parameters() if weight.dim() == 0), None):
            raise UserError(f"strategy=fsdp cannot shard {scalar}, a single number: give the parameter the shape (1,).")
        # The weights at the root stay gathered until the backward pass of the step, whose result is no view.
        warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \(FSDP{type(module).__name__}\) returned a view")
        parts = parts_to_shard(module, self.options.min_num_weights, self.options.layer_classes)
        if self.options.activation_checkpointing:
            self._compute_again(parts)
        if module.automatic_optimization:
            roots: list[nn.Module] = [module]
        else:
            if loose := next((name for name, _ in module.named_parameters(recurse=False)), None):
                raise UserError(
                    f"strategy=fsdp cannot shard {loose} of {type(module).__name__} under manual optimisation: "
                    "let a module within it hold the parameter."
                )
            children = [part for part in module.children() if not isinstance(part, Metric) and _num_weights(part)]
            if any(_shares_weights(child, module) for child in children):
                raise UserError(
                    f"strategy=fsdp cannot shard {type(module).__name__} under manual optimisation, because two of its "
                    "networks share weights: let one module hold both."
                )
            roots = [child for child in children if child not in parts]
        try:
            for part in (*parts, *roots):
                shard(part)
        except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
            raise UserError(f"strategy=fsdp cannot shard {type(module).__name__}: {one_line(error)}.") from error

    def _compute_again(self, parts: list[nn.Module]) -> None:
        if not parts:
            raise UserError(
                "strategy.activation_checkpointing=true is for parts that are sharded on their own, and none has "
                f"strategy.min_num_weights={self.options.min_num_weights}: give less, or name their classes with "
                "strategy.layer_classes=."
            )
        for part in parts:
            # In the place of `forward`, so that names stay, and weights are gathered before.
            object.__setattr__(part, "forward", partial(checkpoint, part.forward, use_reentrant=False))
        self.checkpointed = parts

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Sharding replaces the parameters: those that a module has kept in a list of its own would not be trained."""
        super().setup_optimizers(trainer)
        assert self.lightning_module is not None
        own = {id(weight) for weight in self.lightning_module.parameters()}
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        if any(id(weight) not in own for group in groups for weight in group["params"]):
            raise UserError(
                "configure_optimizers names parameters that the module no longer has, because strategy=fsdp has "
                "sharded them: take them from self.parameters() or self.named_parameters() in that method."
            )

    def on_validation_end(self) -> None:
        """Drops what an evaluation has gathered: a hook that writes into weights must meet the shards."""
        super().on_validation_end()
        for part in self.lightning_module.modules() if self.lightning_module is not None else ():
            if isinstance(part, FSDPModule):
                part.reshard()

    def model_to_device(self) -> None:
        """Moves everything but shards that stay in the memory of the host."""
        if not self.offloads_from_gpu:
            super().model_to_device()
            return
        module = self.lightning_module
        assert module is not None
        for part in module.modules():
            if isinstance(part, Metric):
                part.to(self.root_device)
        module._device = self.root_device  # private in Lightning 2.6: what `module.device` returns

    def teardown(self) -> None:
        module = self.lightning_module
        if module is not None:
            if self._layer_sync is not None:
                self._layer_sync.revert(module)
            vars(module).pop("configure_model", None)
            for part in (module, *self.checkpointed):
                vars(part).pop("forward", None)
            self.checkpointed = []
        super().teardown()

    # Lightning's own way numbers the parameters of an optimizer by their order in the module, and not by that in the
    # optimizer as the other strategies do: with groups or several optimizers, the states would be exchanged.

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning calls `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self.gathered(Strategy.optimizer_state(self, optimizer))

    def gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """Whole tensors on rank 0, which writes the file; empty ones elsewhere."""

        def gather(shard: DTensor) -> Tensor:
            whole = shard.full_tensor().detach()
            return whole.cpu() if self.is_global_zero else torch.empty(0, dtype=whole.dtype)

        return apply_to_collection(state, DTensor, gather)  # type: ignore[no-any-return]

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        state = {name: _sharded(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            parts = {
                number: apply_to_collection(state["state"][number], Tensor, _sharded, weight)
                for number, weight in zip(numbers, weights, strict=False)  # torch refuses other numbers below
                if number in state["state"]
            }
            optimizer.load_state_dict({**state, "state": {**state["state"], **parts}})


def _sharded(value: Any, like: Any) -> Any:
    """The shard of a whole tensor on this rank, as `like` is sharded; a tensor of another shape is replicated."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.dim()):
        return value
    placements = like.placements if value.shape == like.shape else [Replicate()] * like.device_mesh.ndim
    return distribute_tensor(value.to(like.device), like.device_mesh, placements, src_data_rank=None)


def parts_to_shard(
    module: pl.LightningModule, min_num_weights: int, layer_classes: list[str] | None
) -> list[nn.Module]:
    """The parts of a module that are sharded on their own, inner ones first: by the names of their classes, if given,
    or by the number of their weights.

    A part whose weights another part uses too is left to the module around both.
    """
    if layer_classes is None:
        found = list(_large_parts(module, min_num_weights))
    else:
        found = [part for part in _inner_first(module) if type(part).__name__ in layer_classes and part is not module]
        parts = (part for part in module.modules() if _num_weights(part) and not isinstance(part, NEVER_ALONE))
        kinds = {type(part).__name__ for part in parts}
        for name in layer_classes:
            if name not in kinds:
                known = f"the model has none that can be sharded on its own; {nearest(name, kinds)}"
                raise UserError(f"strategy.layer_classes names {name}, and {known}")
    return [part for part in found if not _shares_weights(part, module)]


def _inner_first(part: nn.Module) -> Iterator[nn.Module]:
    for child in () if isinstance(part, Metric) else part.children():
        yield from _inner_first(child)
    yield part


def _large_parts(module: nn.Module, min_num_weights: int) -> Iterator[nn.Module]:
    """As torch's `size_based_auto_wrap_policy`: the weights of a part that is yielded no longer count around it."""
    rest: dict[nn.Module, int] = {}
    opaque = (part for part in module.modules() if isinstance(part, OPAQUE))
    used_within = {inner for part in opaque for inner in part.modules() if inner is not part}
    for part in _inner_first(module):
        own = sum(weight.numel() for weight in part.parameters(recurse=False))
        rest[part] = own + sum(rest.get(child, 0) for child in part.children())
        is_whole = not isinstance(part, (*NEVER_ALONE, Metric)) and part not in used_within and part is not module
        if is_whole and rest[part] >= min_num_weights:
            rest[part] = 0
            yield part


def _num_weights(part: nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters())


def _shares_weights(part: nn.Module, module: nn.Module) -> bool:
    inner, own = set(part.modules()), {id(weight) for weight in part.parameters()}
    outside = (other for other in module.modules() if other not in inner)
    return any(id(weight) in own for other in outside for weight in other.parameters(recurse=False))
