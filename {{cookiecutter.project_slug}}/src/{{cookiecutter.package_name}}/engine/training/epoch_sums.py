"""Running sums of an epoch; a log call or `.item()` a step would cost more than a small network."""

from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


@dataclass
class Totals:
    """Sums over samples; the first two lie on the device, and are read from it once an epoch."""

    loss: Tensor
    figure_sum: Tensor
    count: int = 0

    @classmethod
    def of_no_samples(cls, dtype: torch.dtype, device: torch.device) -> "Totals":
        """Of one dtype on all ranks, those without a sample included."""
        zero = torch.zeros((), device=device)
        return cls(zero.to(torch.promote_types(dtype, torch.float32)), zero.long())

    def add(self, loss: Tensor, figure_sum: Tensor, count: int) -> None:
        """`loss` is a mean over the samples, `figure_sum` a sum."""
        self.loss.add_(loss.detach(), alpha=count)
        self.figure_sum = self.figure_sum + figure_sum
        self.count += count

    def means(self, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Of loss and figure_sum, over the samples of all ranks."""
        count = torch.full_like(self.loss, self.count)
        sums = torch.stack([self.loss, self.figure_sum.to(count.dtype), count])
        loss, figure_sum, count = strategy.reduce(sums, reduce_op="sum").unbind()
        return loss / count, figure_sum / count

    def over_ranks(self, strategy: Strategy) -> dict[str, Tensor | int]:
        """The sums of all ranks, as plain data."""
        own = self.loss.clone(), self.figure_sum.clone(), torch.tensor(self.count, device=self.loss.device)
        loss, figure_sum, count = (strategy.reduce(value, reduce_op="sum") for value in own)
        return {"loss": loss.cpu(), "figure_sum": figure_sum.cpu(), "count": int(count)}

    @classmethod
    def of_ranks(cls, sums: dict[str, Tensor | int], device: torch.device) -> "Totals":
        loss, figure_sum = (torch.as_tensor(sums[name], device=device) for name in ("loss", "figure_sum"))
        return cls(loss, figure_sum, int(sums["count"]))
