"""Random numbers of a training step that belong to its samples, so that they are the same however a batch is split.

Each follows from the seed, the epoch, the batch, the sample's place in the whole batch, the layer, which call of the
layer it is, and the element, by integers alone: it is the same on every device and in every precision.
"""

import logging
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import gt
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dealing import generator_states, tensors_in

log = logging.getLogger(__name__)

BITS_64 = 2**64 - 1
UNKNOWN_ROWS = (
    "warning     %s takes %s for %d samples and cannot tell whose rows they are, so its random numbers depend on how a "
    "batch is split: let the first axis be that of the samples."
)
DRAWS_BY_ITSELF = "warning     %s draws random numbers by itself, so the result depends on how a batch is split: %s."
IN_A_STEP = "take nn.Dropout in place of F.dropout, and engine.sample_uniform in place of torch.rand"
IN_A_TRANSFER = "draw them in the __getitem__ of the data set"


class Rows(NamedTuple):
    """The rows that a replica of DataParallel computes, of all that were scattered."""

    start: int
    stop: int
    total: int


Places = range | tuple[int, ...]

_replica = threading.local()  # its `rows`, in the thread of a replica


def _hash(*numbers: Any) -> Any:
    """Hashes numbers of 64 bits, the last of which may be an array, by splitmix64 (Steele et al., 2014)."""
    x: Any = 0
    for number in numbers:
        x = (x ^ number) + 0x9E3779B97F4A7C15 & BITS_64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & BITS_64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & BITS_64
        x ^= x >> 31
    return x


def _hashes(numbers: Any, device: torch.device, *salts: int) -> Tensor:
    """Two hashes of 32 bits `(2, ...)` of each of the numbers `(...)`."""
    pairs = _hash(*salts, np.asarray(numbers, np.uint64)[..., np.newaxis]).view(np.int32)
    return torch.from_numpy(np.moveaxis(pairs, -1, 0).copy()).to(device)


@lru_cache
def _sample_hashes(places: Places, device: torch.device) -> tuple[Tensor, Tensor]:
    """An odd factor and a summand `(B, 1)` for each sample."""
    factors, summands = _hashes(places, device).unsqueeze(2)
    return factors | 1, summands


class _Step:
    """A step; `places` are those of its samples in the whole batch, for each loader, in an evaluation their indices."""

    def __init__(self, numbers: Sequence[int], places: Sequence[Places], is_split: bool) -> None:
        self.factor = (_hash(*numbers) >> 33) | 1
        self.places, self.is_split = places, is_split
        self.calls: dict[tuple[int, int], dict[int, int]] = {}  # of a layer in a replica, by what each call has drawn

    @property
    def num_drawn(self) -> int:
        """How many numbers the layers have taken from torch's generator."""
        return sum(map(len, self.calls.values()))

    def samples(self, num_rows: int, rows: Rows | None) -> Places:
        """The places of the samples that have so many rows; empty if they are not known."""
        known = [places for places in self.places if rows is None or rows.total == len(places)]
        known = [places if rows is None else places[rows.start : rows.stop] for places in known]
        return next((places for places in known if len(places) == num_rows), known[0] if known else range(0))


_step: _Step | None = None  # the step that runs; its backward pass may compute layers again


class Draws:
    """The random numbers of a layer."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.is_sequence_first = False  # whether x is (T, B, ...)
        self.has_warned = False
        self.hashes: dict[tuple[int, torch.device], Tensor] = {}  # of a sample's elements, for each call in a step

    def bits(self, x: Tensor, shape: Sequence[int], rows: Rows | None = None) -> Tensor:
        """Numbers of 32 bits of the given shape, which is that of `x` with 1 in place of what shares a number.

        They are pairwise independent. Outside of a step, and where the samples of the rows are unknown, they
        come from torch's generator.
        """
        if torch.compiler.is_compiling():
            return _compiled_bits(x, list(shape), self.number)  # type: ignore[no-any-return]
        rows = rows or getattr(_replica, "rows", None)
        found = self._sample_bits(x, shape, rows, _step) if _step and any(_step.places) else None
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=x.device) if found is None else found

    def _sample_bits(self, x: Tensor, shape: Sequence[int], rows: Rows | None, step: _Step) -> Tensor | None:
        if self.is_sequence_first:
            x, shape = x.transpose(0, 1), [shape[1], shape[0], *shape[2:]]
        places = step.samples(len(x), rows)
        size = len(places)
        is_sequence_likely = x.dim() > 2 and 1 < size == x.shape[1] != len(x)  # (T, B, D)
        if not size or len(x) % size or is_sequence_likely:
            if step.is_split and not self.has_warned:
                self.has_warned = True
                log.warning(UNKNOWN_ROWS, self.name, tuple(x.shape), size)
            return None
        factors, summands = _sample_hashes(places, x.device)
        hashes = self._element_hashes(self._call(step, rows), (len(x) // size, *shape[1:]), x.device)
        axes = size, *(1 for _ in hashes.shape)
        bits: Tensor = ((factors * step.factor).view(axes) * hashes).add_(summands.view(axes)).view(*shape)
        return bits.transpose(0, 1) if self.is_sequence_first else bits

    def _call(self, step: _Step, rows: Rows | None) -> int:
        """Which call of the layer in this step it is.

        Activation checkpointing calls a layer again in the backward pass, with torch's generator set back: a call is
        known by what it draws from it. It is not set back for replicas, which draw at the same time.
        """
        calls = step.calls.setdefault((self.number, rows.start if rows else 0), {})
        drawn = int(_drawn(1, torch.default_generator))
        if drawn not in calls and torch._C._current_graph_task_id() != -1:  # private in torch 2.13: in a backward pass
            if len(calls) > 1:
                raise RuntimeError(f"{self.name} is called {len(calls)} times, and which is repeated is unknown.")
            return 0
        return calls.setdefault(drawn, len(calls))

    def _element_hashes(self, call: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """By the coordinates of each element: those of a sequence are the same however far it is padded."""
        hashes = self.hashes.get((call, device))
        if hashes is None or any(map(gt, shape, hashes.shape)):
            sides = shape if hashes is None else map(max, shape, hashes.shape)
            coordinates = np.ogrid[tuple(slice(side) for side in sides)]
            numbers = sum(axis.astype(np.uint64) * _hash(place) for place, axis in enumerate(coordinates))
            hashes = self.hashes[call, device] = _hashes(numbers, device, self.number, call)[0]
        return hashes[tuple(map(slice, shape))]


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    return torch.empty(count, dtype=torch.int64, device="cpu").random_(generator=generator)


_own = Draws(0, "sample_uniform")
_draws: dict[int, Draws] = {}  # of the network that is trained, by the number of the layer


@torch.library.custom_op(f"{__name__.split('.')[0]}::bits", mutates_args=(), tags=[torch.Tag.nondeterministic_seeded])
def _compiled_bits(x: Tensor, shape: list[int], number: int) -> Tensor:
    """What torch.compile takes for a single operation."""
    return _draws.get(number, _own).bits(x, shape)


@_compiled_bits.register_fake
def _like_bits(x: Tensor, shape: list[int], number: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.int32)


def sample_uniform(x: Tensor, *shape: int) -> Tensor:
    """Returns random numbers in [0, 1) of the shape `(len(x), *shape)`, for the samples `x` of a step.

    They do not depend on how a batch is split, unlike those of `torch.rand`, which it is outside of a step.
    Each call in a step gives others. Several rows of a sample must be neighbours in `x`.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    bits = _own.bits(x, [len(x), *shape]) >> 8  # 24 bits, which both types hold exactly
    return bits.to(dtype).mul_(2**-24).add_(0.5)


class SampleLayer(nn.Module):
    """What the layers of all kinds have in common."""

    draws: Draws
    rows: Rows | None = None  # in a replica

    def mask(self, x: Tensor, shape: Sequence[int], p: float) -> Tensor:
        """Returns 0 with probability `p` and else 1, in the type of `x`."""
        if not torch.compiler.is_compiling():
            self.rows = getattr(_replica, "rows", None) or self.rows
        bits = self.draws.bits(x, shape, self.rows)
        return torch.ge(bits, min(round(p * 2**32), 2**32 - 1) - 2**31, out=torch.empty_like(bits, dtype=x.dtype))


class SampleElements(SampleLayer):
    """Drops single elements of `(B, ...)`."""

    p: float
    inplace: bool

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and 0 < self.p < 1):
            return super().forward(x)  # type: ignore[no-any-return]
        factor, summand = self.noise(self.mask(x, self.shared(x), self.p))
        x = x.mul_(factor) if self.inplace else x * factor
        return x if summand is None else x.add_(summand)

    def shared(self, x: Tensor) -> Sequence[int]:
        """The shape of the mask: 1 along each axis whose elements share a random number."""
        return x.shape

    def noise(self, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns what `x` is multiplied by, and what is added then."""
        return mask.div_(1 - self.p), None


class SampleChannels(SampleElements):
    """Drops whole channels of `(B, C, ...)`."""

    def shared(self, x: Tensor) -> Sequence[int]:
        is_unbatched = isinstance(self, {2: nn.Dropout1d, 4: nn.Dropout3d}.get(x.dim(), ()))  # as torch takes it
        num_axes = 1 if is_unbatched else 2
        return [*x.shape[:num_axes], *(1 for _ in x.shape[num_axes:])]


class SampleAlpha(SampleElements):
    """Keeps mean and variance (Klambauer et al., 2017, arXiv:1706.02515)."""

    def noise(self, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        alpha = 1.7580993408473766
        scale = 1 / math.sqrt((alpha**2 * self.p + 1) * (1 - self.p))
        return mask * scale, mask.sub_(1 - self.p).mul_(alpha * scale)


class SampleAttention(SampleLayer):
    """Takes the attention weights before dropout from torch, and repeats what follows them."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        attention: Any = self
        masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
        if not (self.training and 0 < attention.dropout < 1 and query.dim() == 3):
            chosen = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
            return super().forward(query, key, value, **masks, **chosen)  # type: ignore[no-any-return]
        p, attention.dropout = attention.dropout, 0.0
        try:
            weights: Tensor = super().forward(query, key, value, average_attn_weights=False, **masks)[1]
        finally:
            attention.dropout = p
        weights = weights * self.mask(weights, weights.shape, p).div_(1 - p)  # (B, heads, L, S)
        packed, bias, start = attention.in_proj_weight, attention.in_proj_bias, 2 * attention.embed_dim
        values = F.linear(
            value if attention.batch_first else value.transpose(0, 1),
            attention.v_proj_weight if packed is None else packed[start:],
            None if bias is None else bias[start:],
        )  # (B, S, E)
        if attention.bias_v is not None:
            values = torch.cat([values, attention.bias_v.expand(len(values), -1, -1).to(values.dtype)], 1)
        if attention.add_zero_attn:
            values = F.pad(values, (0, 0, 0, 1))
        found = weights @ values.view(*values.shape[:2], attention.num_heads, -1).transpose(1, 2)
        output = attention.out_proj(found.transpose(1, 2).flatten(2))
        output = output if attention.batch_first else output.transpose(0, 1)
        return output, (weights.mean(1) if average_attn_weights else weights) if need_weights else None


_KINDS: dict[type[SampleLayer], list[type[nn.Module]]] = {
    SampleElements: [nn.Dropout],
    SampleChannels: [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d],
    SampleAlpha: [nn.AlphaDropout],
    type("SampleAlphaChannels", (SampleChannels, SampleAlpha), {}): [nn.FeatureAlphaDropout],
    SampleAttention: [nn.MultiheadAttention],
}
SAMPLE_LAYERS = {
    kind: type(f"Sample{kind.__name__}", (base, kind), {}) for base, kinds in _KINDS.items() for kind in kinds
}


class StepRandomness:
    """Makes the layers of a training draw by sample, and reports what draws by itself."""

    def __init__(self) -> None:
        self.originals: dict[nn.Module, type] | None = None
        self.watched: dict[str, int] = {}  # the epoch of the last watch, by the place

    def step(self, trainer: pl.Trainer, batch: Any, places: list[Places], is_split: bool) -> None:
        """Begins a step. Only a class is replaced: parameters, names and checkpoints stay as they are."""
        global _step
        numbers = [int(os.environ.get("PL_GLOBAL_SEED", 0))]
        if trainer.training:
            if self.originals is None:
                self.originals = _replace(trainer.lightning_module)
            number = trainer.fit_loop.epoch_loop.batch_idx // trainer.accumulate_grad_batches
            numbers += trainer.current_epoch, number
        _step = _Step(numbers, places or [range(batch_size(batch))], is_split)

    @contextmanager
    def watch(self, trainer: pl.Trainer, place: str, remedy: str = IN_A_STEP) -> Iterator[None]:
        """Reports, once, that a place draws by itself, which is found out in the first batch of an epoch."""
        if self.watched.get(place, -1) >= trainer.current_epoch:
            yield
            return
        self.watched[place] = trainer.current_epoch
        device, num_drawn = trainer.strategy.root_device, _step.num_drawn if _step else 0
        before, generator = _states(device), torch.Generator()
        yield
        generator.set_state(torch.tensor(before[0], dtype=torch.uint8))
        _drawn(_step.num_drawn - num_drawn if _step else 0, generator)  # as the layers have
        is_seen = [generator.get_state().tolist(), *before[1:]] == _states(device)
        if not is_seen and not any(draws.has_warned for draws in _draws.values()):
            self.watched[place] = sys.maxsize
            log.warning(DRAWS_BY_ITSELF, place, remedy)

    def pause(self) -> None:
        """Leaves the layers to torch until the next step."""
        global _step
        _step = None

    def close(self) -> None:
        self.pause()
        for layer, kind in (self.originals or {}).items():
            layer.__class__ = kind
            del layer.draws
            vars(layer).pop("rows", None)
        self.originals, self.watched, _own.has_warned = None, {}, False
        _draws.clear()


def _replace(module: nn.Module) -> dict[nn.Module, type]:
    originals = {}
    for number, (name, layer) in enumerate(module.named_modules(), 1):
        if type(layer) in SAMPLE_LAYERS:
            originals[layer] = type(layer)
            layer.draws = _draws[number] = Draws(number, name)
            layer.__class__ = SAMPLE_LAYERS[type(layer)]
    for layer in module.modules():
        if isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            for part in layer.children():
                if isinstance(part, SampleElements):
                    part.draws.is_sequence_first = not layer.self_attn.batch_first
    return originals


def _states(device: torch.device) -> list[Any]:
    """Of the generators that a step can draw from; torch's on the CPU comes first."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    first, *others = generator_states()
    return [first.tolist(), *others, *(state.tolist() for state in on_device)]


@contextmanager
def replica_rows(rows: Rows | None) -> Iterator[None]:
    """Around the forward pass of a replica, in its thread."""
    _replica.rows = rows
    try:
        yield
    finally:
        _replica.rows = None


def batch_size(batch: Any) -> int:
    """The length of the first tensor in a batch; 0 without one."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 0)
