"""Trains networks that draw random numbers or have BatchNorm, and prints their weights as JSON.

python noisy.py '{"num_steps": 2}'       # in the processes that torchrun or the caller started
"""

import json
import sys
from typing import Any

import lightning.pytorch as pl
import torch
from plain import DDP, PlainData
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from {{ cookiecutter.package_name }}.engine.distributed.batch_norm import SyncedBatchNorm
from {{ cookiecutter.package_name }}.engine.distributed.devices import resolve_devices
from {{ cookiecutter.package_name }}.engine.distributed.randomness import sample_uniform
from {{ cookiecutter.package_name }}.engine.distributed.strategies import build_strategy, strategy_options
from {{ cookiecutter.package_name }}.engine.warning_filters import IGNORED_WARNINGS, ignore_warnings


class Noisy(nn.Module):
    """Rows `(B, 16)` to logits `(B, 4)`; all layers have residual connections, so that each has an effect."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.ModuleList([nn.Dropout(0.3), nn.AlphaDropout(0.2)])
        self.channels = nn.ModuleList(
            [nn.Dropout1d(0.3), nn.Dropout2d(0.3), nn.Dropout3d(0.3), nn.FeatureAlphaDropout(0.2)]
        )
        self.shared = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3, inplace=True), nn.Tanh())
        self.rows = nn.Dropout(0.3)
        attention = {"num_heads": 2, "dropout": 0.3}
        self.attention = nn.MultiheadAttention(4, add_bias_kv=True, add_zero_attn=True, kdim=8, vdim=8, **attention)  # type: ignore[arg-type]
        layer = {"d_model": 4, "nhead": 2, "dim_feedforward": 8, "dropout": 0.3}
        self.batch_first = nn.TransformerEncoderLayer(batch_first=True, **layer)  # type: ignore[arg-type]
        self.sequence_first = nn.TransformerEncoderLayer(batch_first=False, **layer)  # type: ignore[arg-type]
        self.last = nn.Linear(16, 4)

    def twice(self, x: Tensor) -> Tensor:
        output: Tensor = self.shared(x) + self.shared(2 * x)
        return output

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x) + self.shared(x)
        for layer in self.flat:
            x = torch.tanh(x + layer(x))
        for _ in range(2):  # the same layer in two segments, which the backward pass computes again
            x = torch.tanh(x + checkpoint(self.twice, x, use_reentrant=False))
        for layer, shape in zip(self.channels, ((4, 4), (4, 2, 2), (4, 2, 1, 2), (4, 4)), strict=True):
            x = torch.tanh(x + layer(x.view(-1, *shape)).flatten(1))
        x = torch.tanh(x + self.rows(x.view(-1, 4)).view(x.shape))  # (4 B, 4)
        sequence = x.view(-1, 4, 4)
        doubled = torch.cat([sequence, sequence], 2).transpose(0, 1)
        attended, weights = self.attention(sequence.transpose(0, 1), doubled, doubled)
        x = torch.tanh(x + attended.transpose(0, 1).flatten(1) + weights.sum((1, 2))[:, None])
        x = torch.tanh(x + checkpoint(self.batch_first, sequence, use_reentrant=False).flatten(1))
        x = torch.tanh(x + self.sequence_first(sequence.transpose(0, 1)).transpose(0, 1).flatten(1))
        output: Tensor = self.last(x * (sample_uniform(x, 1) < 0.8) + sample_uniform(x, 16))
        return output


class Normed(nn.Module):
    """Rows `(B, 16)` to logits `(B, 4)`, with BatchNorm of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Unflatten(1, (4, 2, 2)))
        self.second = nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.Conv2d(4, 8, 1), nn.Unflatten(1, (8, 1)))
        self.third = nn.Sequential(nn.BatchNorm3d(8, affine=False), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4))
        self.last = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.third(self.second(self.first(x))))
        return output


class NoisyModule(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        noise = sample_uniform(batch[0], 4)
        self.log("noise", (noise * self.net(batch[0])).mean(), batch_size=len(batch[0]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def run(
    num_steps: int = 1, data: dict[str, Any] | None = None, net: str = "Noisy", **options: Any
) -> dict[str, list[float]]:
    torch.set_default_dtype(torch.float64)
    pl.seed_everything(3, workers=True, verbose=False)
    devices = resolve_devices("cpu", None, "ddp")
    strategy: Any = build_strategy(strategy_options(DDP), devices)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices.for_trainer(),
        strategy=strategy,
        use_distributed_sampler=False,
        accumulate_grad_batches=num_steps,
        max_epochs=1,
        sync_batchnorm=net == "Normed",
        plugins=[SyncedBatchNorm()] if net == "Normed" else None,
        limit_val_batches=0 if net == "Normed" else 1.0,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),  # type: ignore[arg-type]
        **options,
    )
    module = NoisyModule({"Noisy": Noisy, "Normed": Normed}[net]())
    kinds = [type(layer) for layer in module.modules()]
    trainer.fit(module, datamodule=PlainData(**(data or {})))
    assert kinds == [type(layer) for layer in module.modules()]
    weights = {name: weight.flatten().tolist() for name, weight in module.state_dict().items()}
    return {**weights, "noise": [float(trainer.callback_metrics.get("noise", 0))]}


if __name__ == "__main__":
    ignore_warnings(*IGNORED_WARNINGS)
    results = [run(**options) for options in json.loads(sys.argv[1])]
    # The last rank has no sample in the last batch of some runs.
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        print("FOUND " + json.dumps(results))
    if torch.distributed.is_initialized():  # what gloo leaves running can abort an interpreter that ends
        torch.distributed.destroy_process_group()
