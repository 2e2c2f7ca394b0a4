"""What a measured process does: it trains in turns, as `train` does or by hand."""

from __future__ import annotations

import itertools
import os
import time
from types import SimpleNamespace

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from ... import train  # a run imports reports too: that is no growth of its own
from ..config.command_line import Config
from ..config.instantiation import build
from ..distributed.launch import devices_of
from ..training.build import build_for_training
from ..training.fine_tuning import load_starting_point
from .loop import HandWrittenLoop
from .machine import peak_memory_of_process
from .turns import Player


class Turns(Callback):
    """Holds a run at the start of each turn; what an epoch leaves to do counts until the next one begins.

    The run has no end of its own: the benchmark ends the process while it waits.
    """

    def __init__(self, address: str, token: str, num_epochs: int, memory_before: int) -> None:
        self.address, self.token = address, token
        self.num_epochs, self.memory_before = num_epochs, memory_before
        self.start = self.waited = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.player = Player(self.address, self.token)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch % self.num_epochs:
            return
        if trainer.current_epoch:
            seconds = time.perf_counter() - self.start
            devices = getattr(trainer.strategy, "devices", [trainer.strategy.root_device])
            memory = _peak_memory(devices, self.memory_before)
            self.player.tell(seconds=seconds, waited=self.waited, memory=memory)
        self.player.wait()
        self.start, self.waited = time.perf_counter(), 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.waited += getattr(trainer.train_dataloader, "seconds_waited", 0.0)


def with_lightning(config: Config) -> None:
    given = {name: config["turns"][name] for name in ("address", "token", "num_epochs")}
    turns = {"_target_": f"{__name__}.Turns", **given, "memory_before": peak_memory_of_process() or 0}
    train.run({**config, "rehearse_export": False, "callbacks": {**config["callbacks"], "turns": turns}})


def by_hand(config: Config) -> None:
    """The same network, batch and data; on the same device, or on those of all ranks."""
    turns, memory_before = config["turns"], peak_memory_of_process() or 0
    pl.seed_everything(config["seed"], verbose=False)
    devices, rank = devices_of(config), int(os.environ.get("RANK", 0))
    device = devices.to_torch()[rank]
    if devices.num_devices > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    datamodule = build(config["data"], "data")
    datamodule.trainer = SimpleNamespace(
        global_rank=rank, world_size=devices.num_devices, accumulate_grad_batches=1, overfit_batches=0
    )
    model = build_for_training(config["model"], datamodule.spec, lr_factor=1.0)
    load_starting_point(model, ckpt_path=None)
    loop = HandWrittenLoop(
        model,
        datamodule,
        device,
        config["data"]["batch_size"],
        config["seed"],
        precision=str(config["trainer"]["precision"]),
        clip_norm=config["trainer"]["gradient_clip_val"],
        rank=rank,
        world_size=devices.num_devices,
    )
    player = Player(turns["address"], turns["token"])
    for turn in itertools.count():
        player.wait()
        start = time.perf_counter()
        for epoch in range(turns["num_epochs"]):
            loop.epoch(turn * turns["num_epochs"] + epoch, turns["train_batches"], turns["val_batches"])
        seconds = time.perf_counter() - start
        player.tell(seconds=seconds, memory=_peak_memory([device], memory_before))


def _peak_memory(devices: list[torch.device], before: int) -> int | None:
    """Bytes at most: on a GPU what torch held there, the fullest one; on the CPU what this process grew by."""
    if devices[0].type == "cuda":
        return max(torch.cuda.max_memory_allocated(device) for device in devices)
    peak = peak_memory_of_process()
    return None if peak is None else peak - before
