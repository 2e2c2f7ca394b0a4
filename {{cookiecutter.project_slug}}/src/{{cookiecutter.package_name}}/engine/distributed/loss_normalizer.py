"""What a loss that is no mean over samples is divided by, so that it does not depend on how a batch is split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Count = Callable[[Any], Any]

_of_step: Callable[[Any, Count], Tensor] | None = None


def loss_normalizer(batch: Any, count: Count) -> Tensor:
    """Returns the number by which a training step divides a sum over the elements of its batch.

    `count(batch)` returns how many elements of a batch take part in the loss, such as its labelled pixels or its words
    without padding, or the sum of their weights. Then `losses.sum() / loss_normalizer(batch, count)` has the gradient
    of the mean over all elements of the whole batch, whatever the devices and micro-batches: the counts of all parts
    are summed. A batch in which nothing takes part has the loss 0. Outside of a training step it is `count(batch)`.

    All processes must call it in each step. With micro-batches, `count` is called for batches that the step has not
    got yet, on the CPU and before `on_after_batch_transfer`.
    """
    number = torch.as_tensor(count(batch)) if _of_step is None else _of_step(batch, count)
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    number = number.detach().to(dtype)
    return torch.where(number == 0, 1, number)


@contextmanager
def normalized_by(function: Callable[[Any, Count], Tensor]) -> Iterator[None]:
    """While a training step runs: `function` computes the number."""
    global _of_step
    _of_step = function
    try:
        yield
    finally:
        _of_step = None
