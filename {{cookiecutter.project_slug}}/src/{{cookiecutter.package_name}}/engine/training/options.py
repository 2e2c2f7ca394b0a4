"""The options of `train.yaml` that belong to no group."""

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError


@dataclass(frozen=True)
class TrainOptions:
    seed: int
    tags: list[str]
    resume: str | None
    ckpt_path: str | None
    lr_scaling: Literal["none", "linear", "sqrt"]
    base_batch_size: int
    weights: str | None
    pretrained_lr_factor: float
    freeze: str | list[str] | None
    warmup_steps: int
    ema_decay: float | None
    sample_dropout: bool
    compile: bool
    channels_last: bool
    rehearse_export: Literal["warn", "require", False]
    test: bool

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is out of range: give 0 to {2**32 - 1}.")
        if self.base_batch_size < 1:
            raise UserError(f"base_batch_size={self.base_batch_size} holds no sample: give 1 or more.")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps={self.warmup_steps} is out of range: give 0 (none) or more.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay={self.ema_decay} is out of range: give more than 0, and less than 1, or null.")
        if not 0 < self.pretrained_lr_factor <= 1:
            raise UserError(
                f"pretrained_lr_factor={self.pretrained_lr_factor} is out of range: give more than 0, and at most 1."
            )

    @property
    def lr_rule(self) -> str:
        """How the learning rate was scaled, in brackets; empty if it was not."""
        return "" if self.lr_scaling == "none" else f" ({self.lr_scaling}, from batch {self.base_batch_size})"

    def lr_factor(self, batch_size: int | None) -> float:
        """Scales `linear` as Goyal et al. (2017, arXiv:1706.02677), `sqrt` as Krizhevsky (2014, arXiv:1404.5997)."""
        if self.lr_scaling == "none":
            return 1.0
        if batch_size is None:
            raise UserError(f"lr_scaling={self.lr_scaling} needs the size of a batch: give data.batch_size.")
        exponent = {"linear": 1.0, "sqrt": 0.5}[self.lr_scaling]
        return float((batch_size / self.base_batch_size) ** exponent)
