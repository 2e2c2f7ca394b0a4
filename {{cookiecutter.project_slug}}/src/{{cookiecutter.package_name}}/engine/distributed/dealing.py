"""Deals ordinary DataLoaders to ranks and micro-batches: the same samples at the same optimiser step everywhere."""

import ctypes
import math
import os
import random
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils import data

from ..errors import Fault, UserError, lost_worker, one_line
from .worker_start import NotedStart, with_workers

GOLDEN_RATIO = 0x9E3779B97F4A7C15  # an odd factor: the seeds of an epoch's samples all differ
NUM_COMPARED = 4  # samples
NUMPY_STATE = 2500  # bytes, of the 624 numbers of MT19937 and the position in them
WORKER_OPTIONS = ("num_workers", "worker_init_fn", "multiprocessing_context", "prefetch_factor", "persistent_workers")
COPIED_OPTIONS = (*WORKER_OPTIONS, "pin_memory", "timeout")
# Whose order follows from their generator alone: others may go on from the order of the pass before.
SAMPLERS_OF_TORCH = (data.RandomSampler, data.SequentialSampler, data.SubsetRandomSampler, data.WeightedRandomSampler)

_current_pass = 0, 0  # the seed and the epoch of the batch that this process fetches


def seeded(*numbers: int) -> torch.Generator:
    """Returns a generator that is seeded from all of the numbers, each 0 or more."""
    return torch.Generator().manual_seed(_seed(*numbers))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def sample_generators(indices: Sequence[int]) -> list[torch.Generator]:
    """Returns a generator for each sample of the batch that is being fetched.

    Its numbers depend on the seed, the epoch and the sample's index alone: not on the rank, the worker process or the
    samples before it. Outside of a Trainer's loaders, seed and epoch are 0.
    """
    return [seeded(*_current_pass, index) for index in indices]


def _seed_generators(number: int) -> None:
    """Seeds torch on the CPU, numpy and random; torch.manual_seed reaches for every device, which takes longer."""
    torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def generator_states() -> tuple[Tensor, bytes, Any]:
    """Of torch on the CPU, numpy and random; numpy's as bytes, because `get_state` takes longer than all others."""
    in_numpy = ctypes.string_at(_address_of_numpys_state(), NUMPY_STATE)
    return torch.default_generator.get_state(), in_numpy, random.getstate()


def _address_of_numpys_state() -> int:
    return np.random.get_bit_generator().ctypes.state_address  # type: ignore[attr-defined,no-any-return]


def have_drawn(before: tuple[Tensor, bytes, Any]) -> bool:
    """Whether random numbers were drawn since the generators had these states."""
    now = generator_states()
    return not torch.equal(before[0], now[0]) or before[1:] != now[1:]


def _set_generator_states(states: tuple[Tensor, bytes, Any]) -> None:
    """Forgets the second of a pair of normal numbers, which numpy stores and would give without a draw."""
    torch.default_generator.set_state(states[0])
    numbers = np.frombuffer(states[1], np.uint32)
    np.random.set_state(("MT19937", numbers[:-1], int(numbers[-1])))  # type: ignore[arg-type]
    random.setstate(states[2])


@contextmanager
def generators_seeded(number: int) -> Iterator[None]:
    """Restores the generators afterwards."""
    with isolate_rng(include_cuda=False):
        _seed_generators(number)
        yield


@dataclass(frozen=True)
class Share:
    """Which part of each batch this process takes."""

    rank: int = 0
    world_size: int = 1
    num_steps: int = 1  # micro-batches of an optimiser step

    @property
    def num_parts(self) -> int:
        return self.world_size * self.num_steps


@dataclass(frozen=True)
class Part:
    """A rank's part of a batch; it travels with its samples through the worker process that fetches them."""

    epoch: int
    indices: list[int]  # of its samples; of two others where it has none, because BatchNorm refuses a single one
    num_own: int
    num_whole: int  # samples of the whole batch: on all ranks, in all micro-batches
    places: range = range(0)  # of its samples in the whole batch
    compared: Sequence[int] = ()  # samples that every rank reads, in the first part of all
    figure: float = 0.0  # of their values


Parts = dict[int, Part]  # that were delivered since the last step, by the id of their loader
Total = Callable[[Any], Any]  # sums an int or a float over the ranks


class DealtBatches(data.Sampler[Part]):
    """A rank's parts of the batches of a BatchSampler, whose order depends on the seed and the epoch alone.

    Each batch is cut into micro-batches, of which each rank takes every n-th sample. In an evaluation the samples
    within `limit`, which counts Lightning's batches, are first cut into equal batches that have a sample for every
    rank, if there are as many: all must run the same number of steps. One process alone takes the batches as they are.
    """

    def __init__(
        self, source: data.BatchSampler, seed: int, share: Share, is_training: bool, limit: float = 1.0
    ) -> None:
        self.source, self.seed, self.share, self.limit = source, seed, share, limit
        self.is_training = is_training
        self.is_cut_anew = not is_training and share.num_parts > 1
        self.epoch = 0
        self.first = 0  # the part that the next pass begins with
        self.order: list[list[int]] = []  # of the epoch `ordered_epoch`, as the source gives it
        self.ordered_epoch = -1
        self.batches: list[list[int]] = []  # of the pass that was begun last, whole
        self.is_compared = share.world_size == 1
        # Lightning calls set_epoch on `batch_sampler.sampler`, never on the batch sampler itself.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """An evaluation draws the same numbers in each epoch, so that its figures can be compared."""
        self.epoch = epoch if self.is_training else 0

    def __len__(self) -> int:
        """The number of which Lightning takes its share `limit`."""
        num_parts = len(self.source) * self.share.num_steps
        if not self.is_cut_anew or not (num_cut := self._selected()[1]):
            return num_parts
        if isinstance(self.limit, int):
            return num_cut
        return next(number for number in count(num_cut) if int(number * self.limit) == num_cut)

    def __iter__(self) -> Iterator[Part]:
        """A generator, because torch calls `iter()` twice for worker processes and takes the second one."""
        first, self.first = self.first, 0
        self.batches, num_steps = self._ordered(), self.share.num_steps
        if self.is_cut_anew:
            num_selected, num_cut = self._selected()
            order, num_steps = [index for batch in self.batches for index in batch][:num_selected], 1
            self.batches = list(_cut(order, num_cut))
        yield from islice(self._parts(num_steps), first, None)

    def sizes(self, num_batches: int) -> list[int]:
        """The numbers of samples of the first whole batches of an epoch."""
        return [len(batch) for batch in self._ordered()[:num_batches]]

    def _parts(self, num_steps: int) -> Iterator[Part]:
        for batch in self.batches:
            for micro_batch in _cut(range(len(batch)), num_steps):
                places = micro_batch[self.share.rank :: self.share.world_size]
                own = [batch[place] for place in places]
                compared = () if self.is_compared else batch[:NUM_COMPARED]
                self.is_compared = True
                yield Part(self.epoch, own or (batch + batch)[:2], len(own), len(batch), places, compared)

    def _ordered(self) -> list[list[int]]:
        """A sampler may keep a state of its own: a resumed run draws the orders of the epochs before as well."""
        sampler: Any = getattr(self.source, "sampler", self.source)
        if self.epoch != self.ordered_epoch:
            has_state = type(sampler) not in SAMPLERS_OF_TORCH or type(self.source) is not data.BatchSampler
            first = self.ordered_epoch + 1 if has_state else self.epoch
            for epoch in range(min(first, self.epoch), self.epoch + 1):
                self.order = self._drawn(sampler, epoch)
            self.ordered_epoch = self.epoch
        return self.order

    def _drawn(self, sampler: Any, epoch: int) -> list[list[int]]:
        """A sampler without a generator of its own draws from the global ones."""
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        generator = getattr(sampler, "generator", self)
        with generators_seeded(_seed(self.seed, epoch)):
            if not isinstance(generator, torch.Generator | None):
                return [list(batch) for batch in self.source]
            sampler.generator = seeded(self.seed, epoch)
            batches = [list(batch) for batch in self.source]
            sampler.generator = generator
            return batches

    def _selected(self) -> tuple[int, int]:
        """The number of samples within the limit, and of the batches into which they are cut."""
        num_batches = len(self.source) * self.share.num_steps
        within = min(num_batches, self.limit) if isinstance(self.limit, int) else int(num_batches * self.limit)
        num_samples = min(-(-within // self.share.num_steps) * self.source.batch_size, len(self.source.sampler))  # type: ignore[arg-type]
        return num_samples, min(num_samples, within, max(1, num_samples // self.share.world_size))


def _cut(samples: Any, num_parts: int) -> Iterator[Any]:
    for part in range(num_parts):
        yield samples[part * len(samples) // num_parts : (part + 1) * len(samples) // num_parts]


class SeededFetch(data.Dataset[Any]):
    """Fetches the samples of a part, each under generators that are seeded for it if the data set draws from them.

    Whether it does is found out with each batch, and for tensors in memory with the first of each epoch.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], seed: int) -> None:
        self.dataset, self.collate, self.seed = dataset, collate, seed
        self.epoch, self.draws, self.is_in_memory = -1, False, _is_in_memory(dataset)

    def __getattr__(self, name: str) -> Any:
        """What user code looks for in `trainer.train_dataloader.dataset`."""
        if name == "dataset":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, part: Part) -> tuple[Part, Any]:
        """Returns an error as the batch: a worker process that raises it would add its traceback to the sentence."""
        global _current_pass
        _current_pass = self.seed, part.epoch
        try:
            if part.compared:
                part = replace(part, figure=self._figure(part))
            if self.is_in_memory and part.epoch == self.epoch and not self.draws:
                return part, self.collate(fetch(self.dataset, part.indices))
            if not self.draws:
                states = generator_states()
                if part.epoch != self.epoch:
                    _set_generator_states(states)
                self.epoch = part.epoch
                batch = self.collate(fetch(self.dataset, part.indices))
                if not have_drawn(states):
                    return part, batch
                self.draws = True
                _set_generator_states(states)
            with isolate_rng(include_cuda=False):
                return part, self._seeded_batch(part)
        except UserError as error:
            return part, error
        except Exception as error:  # a data set may raise anything
            unreadable = next((index for index in part.indices if not self._is_readable(index)), None)
            named = f"one of the samples {part.indices}" if unreadable is None else f"sample {unreadable}"
            reason = f"{type(error).__name__}: {one_line(error)}"
            return part, Fault(f"{named} of the {len(self)} of its split cannot be read: {reason}.")

    def _seeded_batch(self, part: Part) -> Any:
        first = _seed(self.seed, part.epoch)
        samples = []
        for index in part.indices:
            number = int(index) if hasattr(index, "__index__") else zlib.crc32(repr(index).encode())
            _seed_generators((first + number * GOLDEN_RATIO) % 2**64)
            found = fetch(self.dataset, [index])
            if not isinstance(found, list):
                raise UserError(
                    f"{type(self.dataset).__name__}.__getitems__ draws random numbers and returns no list, so its "
                    "samples cannot be fetched one by one: let it return a list."
                )
            samples += found
        return self.collate(samples)

    def _figure(self, part: Part) -> float:
        """A number that is alike on all ranks if they read the same values; NaN if another call reads others."""
        found = []
        for _ in range(2):
            with generators_seeded(_seed(self.seed, part.epoch)):
                batch = self.collate(fetch(self.dataset, part.compared))
            dense = [values.cpu().double().flatten() for values in tensors_in(batch) if values.layout == torch.strided]
            known = [values.nan_to_num(0, 0, 0).abs() for values in dense]
            found.append(sum((values * _weights(len(values))).sum().item() for values in known))
        return found[0] if found[0] == found[1] else math.nan

    def _is_readable(self, index: int) -> bool:
        try:
            fetch(self.dataset, [index])
        except Exception:
            return False
        return True


def tensors_in(batch: Any) -> list[Tensor]:
    """All that a batch holds, arrays of numbers among them, also in dataclasses."""
    found: list[Any] = []
    apply_to_collection(batch, (Tensor, np.ndarray), found.append, allow_frozen=True)
    return [torch.as_tensor(value) for value in found if isinstance(value, Tensor) or value.dtype.kind in "biuf"]


def _weights(size: int) -> Tensor:
    """Different for neighbours: a sum with them is another one in another order."""
    return torch.arange(size, dtype=torch.float64) % 97 + 1


def _is_in_memory(dataset: Any) -> bool:
    while type(dataset) is data.Subset:
        dataset = dataset.dataset
    return type(dataset) is data.TensorDataset or "is_in_memory" in vars(type(dataset))


def fetch(dataset: Any, indices: Sequence[int]) -> Any:
    """The samples, by one call of the innermost data set's `__getitems__` if it has one."""
    if type(dataset) is data.Subset:
        return fetch(dataset.dataset, [dataset.indices[index] for index in indices])
    if type(dataset) is data.ConcatDataset:
        samples: dict[int, Any] = {}
        for part, stop in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            start = stop - len(part)  # type: ignore[arg-type]
            own = [index - start for index in indices if start <= index < stop]
            found = fetch(part, own) if own else []
            found = found if isinstance(found, list) else [part[index] for index in own]
            samples |= {start + index: sample for index, sample in zip(own, found, strict=True)}
        return [samples[index] for index in indices]
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(indices)
    return [dataset[index] for index in indices]


class _Loader(data.DataLoader[Any]):
    """Keeps the options of `source`; notes each part in `parts`, for the strategy's next step."""

    def __init__(self, source: data.DataLoader[Any], seed: int, parts: Parts, **options: Any) -> None:
        # Its own generator: the loader would draw from the one that dropout uses.
        copied = {name: getattr(source, name) for name in COPIED_OPTIONS}
        if source.num_workers:
            copied["worker_init_fn"] = NotedStart(source.worker_init_fn, source.multiprocessing_context)
        super().__init__(generator=seeded(seed), **copied, **options)
        self.source, self.parts = source, parts
        self.seconds_waited = 0.0  # in this pass, for batches that were not there yet

    def _fetched(self) -> Iterator[tuple[Any, Any]]:
        if self.num_workers:
            sys.unraisablehook = report_unless_lost_worker
        self.seconds_waited = 0.0
        fetched = with_workers(self, super().__iter__)
        while True:
            start = time.perf_counter()
            try:
                part, batch = next(fetched)
            except StopIteration:
                return
            except Exception as error:  # a worker process may raise anything
                if lost := lost_worker(error, self.num_workers):
                    raise lost from error
                raise
            if isinstance(batch, UserError):
                raise batch
            self.seconds_waited += time.perf_counter() - start
            yield part, batch


class DealtLoader(_Loader):
    """Loads the parts of this rank. Lightning stores its state in each checkpoint, to resume within an epoch."""

    def __init__(self, source: data.DataLoader[Any], batches: DealtBatches, parts: Parts, total: Total | None) -> None:
        fetch = SeededFetch(source.dataset, source.collate_fn, batches.seed)
        super().__init__(source, batches.seed, parts, dataset=fetch, batch_sampler=batches, collate_fn=_identity)
        self.batches, self.total = batches, total
        self.num_delivered = 0  # batches of this pass, without those that worker processes have fetched ahead
        self.part: Part | None = None  # of the batch that was delivered last
        self.resumed: dict[str, int] | None = None
        self.fetched: Iterator[tuple[Part, Any]] = iter(())
        self.ahead: deque[tuple[Part, Any]] = deque()  # fetched for `rest_of_batch`, and not delivered yet

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """A generator, because Lightning sets the epoch and a resumed state between `iter()` and the first batch."""
        state, self.resumed = self.resumed, None
        is_same_epoch = state is not None and state["epoch"] == self.batches.epoch
        self.batches.first = self.num_delivered = state["num_delivered"] if state and is_same_epoch else 0
        self.fetched = self._fetched()
        self.ahead.clear()
        for number in count():
            part, batch = self.ahead.popleft() if self.ahead else next(self.fetched, (None, None))
            if part is None:
                return
            if number == 0:
                self._refuse_other_orders()
            if part.compared:
                self._refuse_other_values(part.figure)
            self.num_delivered += 1
            self.part = self.parts[id(self)] = part
            yield batch

    def _refuse_other_orders(self) -> None:
        """The ranks share each batch: they would train on some samples twice, and on others never."""
        world_size = self.batches.share.world_size
        if self.total is None or world_size == 1:
            return
        # The samples that a Subset holds are a part of it.
        order = self.batches.order, list(getattr(self.source.dataset, "indices", ()))
        checksum = zlib.crc32(repr(order).encode())
        if self.total(checksum) != checksum * world_size:
            kinds = f"{type(self.source.sampler).__name__} or the split of {type(self.source.dataset).__name__}"
            raise UserError(
                f"the processes have samples in different orders: {kinds} draws from a generator without a seed; give "
                "it one, or draw from torch, numpy or random, which the run seeds."
            )

    def _refuse_other_values(self, figure: float) -> None:
        mean = self.total(figure) / self.batches.share.world_size if self.total else figure
        if abs(figure - mean) > 1e-4 * mean:  # processors of several kinds may round differently
            raise UserError(
                f"the processes read different values as the same samples of {type(self.source.dataset).__name__}: its "
                "split, labels or transforms depend on a generator without a seed, or on the order of a set. Seed the "
                "generator, or sort the set."
            )

    def rest_of_batch(self) -> list[tuple[Part, Any]]:
        """This rank's parts of the optimiser step that follow the last one; they are fetched, and delivered later."""
        num_left = -self.num_delivered % self.batches.share.num_steps
        self.ahead.extend(islice(self.fetched, num_left - len(self.ahead)))
        return list(self.ahead)

    @property
    def whole_batch(self) -> list[int]:
        """The samples of the optimiser step that the last batch is part of, on all ranks."""
        return self.batches.batches[(self.num_delivered - 1) // self.batches.share.num_steps]

    def state_dict(self) -> dict[str, int]:
        progress = {"epoch": self.batches.epoch, "num_delivered": self.num_delivered, "num_batches": len(self)}
        return progress | self._split()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Refuses other batches within an epoch: some samples would be seen twice, and others not at all."""
        split = self._split()
        was = {name: state[name] for name in split}
        if was != split and state["num_delivered"] < state["num_batches"]:
            before, now = (", ".join(f"{name}={value}" for name, value in numbers.items()) for numbers in (was, split))
            raise UserError(
                f"the run was ended in the middle of an epoch with {before}, and would go on with {now}: give the same "
                "data.batch_size, data.micro_batch_size, trainer.devices and seed until its end."
            )
        self.resumed = state

    def _split(self) -> dict[str, int]:
        share, batch_size = self.batches.share, self.batches.source.batch_size or 0
        sizes = {"num_samples": len(self.dataset), "batch_size": batch_size}  # type: ignore[arg-type]
        return {**sizes, "num_steps": share.num_steps, "world_size": share.world_size, "seed": self.batches.seed}


class StreamLoader(_Loader):
    """Loads this rank's shard of an IterableDataset; the ranks agree on the size of each batch, and on the last one.

    A part is noted when the next batch is fetched, because Lightning fetches a batch ahead where there is no length.
    """

    def __init__(self, source: Any, seed: int, parts: Parts, share: Share, total: Total) -> None:
        super().__init__(source, seed, parts, dataset=_ShardBatches(source, share), batch_size=None)
        self.total = total

    def __len__(self) -> int:
        raise TypeError("a shard has no length that all ranks agree on")

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        fetched, batch, part = self._fetched(), None, None
        while True:
            # A rank whose shard has ended repeats a batch with weight 0.
            fetched_part, batch = next(fetched, (Part(0, [], 0, 0), batch))
            num_whole = self.total(fetched_part.num_own)
            if part is not None:
                self.parts[id(self)] = part
            if num_whole < (self.source.batch_size if self.source.drop_last else 1):
                return
            if batch is None:
                raise UserError("the shard of one of the ranks holds no sample: take fewer devices.")
            part = replace(fetched_part, num_whole=num_whole)
            yield batch


class _ShardBatches(data.IterableDataset[tuple[Part, Any]]):
    """The parts of a shard, which is every n-th sample, of the batches of the whole; the size of these is unknown."""

    def __init__(self, source: Any, share: Share) -> None:
        self.shard = source.dataset.shard(rank=share.rank, world_size=share.world_size)
        self.collate, self.batch_size, self.share = source.collate_fn, source.batch_size, share

    def __iter__(self) -> Iterator[tuple[Part, Any]]:
        samples = iter(self.shard)
        for start in count(0, self.batch_size):
            first = (self.share.rank - start) % self.share.world_size
            places = range(first, self.batch_size, self.share.world_size)
            batch = list(islice(samples, len(places)))
            if not batch:
                return
            yield Part(0, [], len(batch), 0, places[: len(batch)]), self.collate(batch)


def _identity(batch: Any) -> Any:
    return batch


def report_unless_lost_worker(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints an error that was raised in a destructor, except that of a lost worker.

    torch raises that one wherever the main thread is, and Python can only print it in a destructor. The loader notices
    the loss itself within seconds.
    """
    error = unraisable.exc_value
    if not (isinstance(error, Exception) and lost_worker(error)):
        sys.__unraisablehook__(unraisable)


def deal(
    loader: object,
    share: Share,
    name: str,
    limit: float = 1.0,
    parts: Parts | None = None,
    total: Total | None = None,
    batch_size: int | None = None,
) -> Any:
    """Returns a loader of this rank's parts of the batches of `loader`, which notes them in `parts`.

    `name` is that of the DataModule's hook; `total` sums a number over the ranks. A loader whose batches hold one
    rank's part of `batch_size`, because the DataModule has divided that by the number of ranks, gets whole ones. What
    cannot be dealt stays as it is on one process without micro-batches, and is refused elsewhere.
    """
    if isinstance(loader, _Loader):  # Lightning has replaced the loaders in a CombinedLoader
        loader = loader.source
    if obstacle := _obstacle(loader, share):
        if share.num_parts == 1:
            return loader
        raise UserError(f"{name} cannot be split over several processes or micro-batches: {obstacle}.")
    assert isinstance(loader, data.DataLoader)
    generator = getattr(loader.sampler, "generator", None) or loader.generator
    seed = (
        generator.initial_seed() if isinstance(generator, torch.Generator) else int(os.environ.get("PL_GLOBAL_SEED", 0))
    )
    parts = {} if parts is None else parts
    if isinstance(loader.dataset, data.IterableDataset):
        return StreamLoader(loader, seed, parts, share, total or int)
    source: Any = loader.batch_sampler
    if batch_size is not None and loader.batch_size and loader.batch_size * share.world_size == batch_size:
        source = data.BatchSampler(loader.sampler, batch_size, loader.drop_last)
    batches = DealtBatches(source, seed, share, name == "train_dataloader", limit)
    if not len(source):
        num_samples = len(loader.sampler)  # type: ignore[arg-type]
        remedy = f"give batch_size={num_samples} or less, or drop_last=False" if num_samples else "fill its data set"
        sizes = f"{num_samples} samples in batches of {source.batch_size}"
        raise UserError(f"{name} yields no batch, because it has {sizes}: {remedy}.")
    return DealtLoader(loader, batches, parts, total)


def _obstacle(loader: object, share: Share) -> str:
    """Why a loader cannot be dealt, and the remedy; empty if it can."""
    # torchdata's iterates as torch's, but for the position in an epoch, which `DealtLoader` stores.
    is_stateful = type(loader).__module__.startswith("torchdata.stateful_dataloader")
    if not isinstance(loader, data.DataLoader) or not (
        is_stateful or type(loader).__iter__ is data.DataLoader.__iter__
    ):
        return f"return torch's DataLoader in place of a {type(loader).__name__}"
    if loader.batch_sampler is None or (loader.batch_size is None and share.num_parts > 1):
        return "give it batch_size=, and sampler= for an order of its own, in place of a batch sampler"
    if isinstance(loader.dataset, data.IterableDataset):
        if share.world_size == 1 or share.num_steps > 1:
            return "an IterableDataset has no micro-batches; leave out data.micro_batch_size"
        kind = type(loader.dataset).__name__
        if not hasattr(loader.dataset, "shard"):
            return f"give {kind} a method shard(rank, world_size) that returns every n-th sample"
        is_enough = (loader.batch_size or 0) >= share.world_size
        return "" if is_enough else f"give it a batch_size of {share.world_size} or more, a sample for each process"
    if isinstance(loader.sampler, data.DistributedSampler):
        return "leave out its DistributedSampler; samples are dealt without one"
    is_sized = isinstance(loader.sampler if loader.batch_size else loader.batch_sampler, Sized)
    return "" if is_sized else f"give {type(loader.sampler).__name__} a length, __len__"
