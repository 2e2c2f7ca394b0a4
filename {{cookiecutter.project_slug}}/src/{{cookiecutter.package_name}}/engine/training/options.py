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
    rehearse_export: bool
    test: bool

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is out of range: give 0 to {2**32 - 1}.")
        if self.base_batch_size < 1:
            raise UserError(f"base_batch_size={self.base_batch_size} holds no sample: give 1 or more.")

    def lr_factor(self, batch_size: int) -> float:
        """Scales `linear` as Goyal et al. (2017, arXiv:1706.02677), `sqrt` as Krizhevsky (2014, arXiv:1404.5997)."""
        exponent = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[self.lr_scaling]
        return float((batch_size / self.base_batch_size) ** exponent)
