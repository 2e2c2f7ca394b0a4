"""A loader that says which sample cannot be read, in one sentence."""

import math
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import Fault, UserError, is_raised_by_sample, lost_worker, one_line
from ..spec import DataSpec

Batch = tuple[Tensor, Tensor]

SHARED_MEMORY = Path("/dev/shm")
AHEAD = 2  # batches that each process reads ahead, as torch's loaders do
MIB = 2**20


def check_shared_memory(num_workers: int, spec: DataSpec, batch_size: int) -> None:
    """Batches pass through it from the processes that read them; Docker gives 64 MiB unless told otherwise."""
    if not SHARED_MEMORY.is_dir():
        return
    sample = math.prod(spec.input_shape) * np.dtype(spec.input_dtype).itemsize
    needed, free = num_workers * AHEAD * batch_size * sample, shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise Fault(
            f"the shared memory has {free / MIB:,.0f} MiB left, and {num_workers} processes that read samples need "
            f"{needed / MIB:,.0f} MiB: take fewer with data.num_workers=, or give a container more with --shm-size."
        )


class Loader(DataLoader[Batch]):
    """Batches of a dataset whose `__getitems__` returns them finished."""

    def __init__(self, dataset: Dataset[Batch], **options: Any) -> None:
        super().__init__(dataset, collate_fn=_as_fetched, **options)
        self.num_handed_out = 0  # of this pass; not those that worker processes have fetched ahead

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.num_handed_out = 0
        return self.handed_out(super().__iter__())

    def handed_out(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except UserError:
                raise
            except Exception as error:  # whatever a dataset raises
                raise self._fault(error) from error
            self.num_handed_out += 1
            yield batch

    def places(self, batch_idx: int) -> list[int]:
        """The samples of a batch of this pass, by their positions in the dataset."""
        return [_number(place) for place in self._batch(batch_idx)]

    def _batch(self, batch_idx: int) -> list[Any]:
        return next(islice(iter(self.batch_sampler), batch_idx, None), [])  # type: ignore[arg-type]

    def _fault(self, error: Exception) -> UserError:
        if (lost := lost_worker(error, self.num_workers)) is not None:
            return lost
        places = self._batch(self.num_handed_out)
        bad = [_number(place) for place in places if not self._is_readable(place)]
        named = f"sample {bad[0]}" if bad else f"one of the samples {[*map(_number, places)]}"
        return Fault(f"{named} of the {len(self.dataset)} of its split cannot be read: {_reason(error)}.")  # type: ignore[arg-type]

    def _is_readable(self, place: Any) -> bool:
        try:
            self.dataset.__getitems__([place])  # type: ignore[attr-defined]
        except Exception:
            return False
        return True


def _reason(error: Exception) -> str:
    """Of an error in a worker process, its last line; of one in this process, with the place that raised it."""
    if is_raised_by_sample(error):
        return str(error).strip().splitlines()[-1].strip().rstrip(".")
    return f"{type(error).__name__}: {one_line(error)}"


def _number(place: Any) -> int:
    """With its epoch, where samples are augmented."""
    return int(place[1] if isinstance(place, tuple) else place)


def _as_fetched(batch: Any) -> Any:
    """`__getitems__` returns a finished batch: there is nothing left to collate."""
    return batch
