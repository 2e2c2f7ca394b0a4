"""Training by a project beside a loop written by hand and beside plain Lightning; ddp beside torch's own DDP.

In an environment of a generated project, from anywhere, while nothing else runs:

python benchmarks/training.py
python benchmarks/training.py --cases tiny digits --rounds 6 trainer.precision=bf16-mixed

All sides are processes of their own that take turns, a few epochs each, in alternating order. A ratio is the time of
the other side over the project's, of one round: 1 is as fast. The median of all rounds is printed with its 95 %
interval. The project does all that `train` does, with metrics, checkpoints and csv logger. Plain Lightning is a
`Trainer` with two checkpoints (the best and the last), the csv logger and the same LightningModule and DataModule. The
loop computes the same losses and accuracies, and writes nothing. On the CPU, the project sets glibc to keep the memory
that a step has freed; the loop is measured with the same settings, which the bounds are for, and without them, as one
would start it. Before anything is timed, project and loop train in
float64 without dropout, and must end with the same weights.
"""

import argparse
import functools
import json
import math
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from digit_classifier.engine import DataSpec, InMemoryDataModule, SamplesInMemory
from digit_classifier.engine.config import CONFIG_DIRS
from digit_classifier.engine.config.command_line import compose, register_with_hydra
from digit_classifier.engine.config.hydra_versions import VERSION_BASE
from digit_classifier.engine.distributed.dealing import seeded
from digit_classifier.engine.distributed.launch import launch
from digit_classifier.engine.distributed.plan import Plan, data_section
from digit_classifier.engine.warning_filters import IGNORED_WARNINGS, ignore_warnings
from hydra import initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tables import at_least, print_table, say
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

HERE = Path(__file__).parent
NUM_DEVICES = 2  # of ddp
TOLERANCE = 1e-10  # of weights in float64
Rounds = dict[str, list[float]]  # the seconds of each side

# What the project sets for itself on the CPU.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
SIDES = ("project", "loop", "plain loop", "lightning")
PICTURES = [
    "~data",
    "+data={_target_:training.PicturesDataModule,num_samples:12800,num_val:1280,side:28,batch_size:128,seed:${seed}}",
]
TINY = ["model=mlp", "model.net.widths=[64,128,64]", "model.net.dropout=0"]
# Each measured training is without an end of its own.
ENDLESS = ["trainer.max_epochs=-1", "callbacks.early_stopping=null", "test=false", "rehearse_export=false"]
EXACT = ["trainer.precision=64-true", "model.net.dropout=0"]


class Case(NamedTuple):
    options: list[str]  # of `train`
    num_epochs: int  # of a turn
    bound: float  # of the ratio to the loop
    with_ddp: bool


CASES = {
    "tiny": Case([*PICTURES, *TINY], 1, 0.60, with_ddp=False),
    "digits": Case([], 5, 0.85, with_ddp=True),
    "convolutions 14 x 14": Case([*PICTURES, "data.side=14", "model.net.widths=[16,32,32]"], 1, 0.92, with_ddp=True),
    "convolutions 28 x 28": Case([*PICTURES, "model.net.widths=[24,40,40]"], 1, 0.97, with_ddp=True),
}
BOUND_OF_DDP = 0.95


class PicturesDataModule(InMemoryDataModule):
    """Pictures of noise `(N, 1, side, side)`, uint8; the label is the brightest of the first ten pixels."""

    def __init__(self, num_samples: int, num_val: int, side: int, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, seed, num_workers=0, pin_memory=None, val_fraction=0.1)
        shape = (num_samples + num_val, 1, side, side)
        pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        labels = pixels.flatten(1)[:, :10].argmax(dim=1)
        self.samples = {
            "train": SamplesInMemory(pixels[:num_samples], labels[:num_samples]),
            "val": SamplesInMemory(pixels[num_samples:], labels[num_samples:]),
        }
        self.spec = DataSpec(
            name="pictures",
            task="classification",
            input_shape=shape[1:],
            input_dtype="uint8",
            input_range=(0.0, 255.0),
            labels=tuple(str(number) for number in range(10)),
            mean=(127.5,),
            std=(73.9,),
        )


def compose_train(options: list[str]) -> dict:
    """Returns the configuration of the command `train`."""
    _register_with_hydra()
    with initialize_config_dir(str(CONFIG_DIRS[0]), **VERSION_BASE):
        return compose("train", options)


_register_with_hydra = functools.cache(register_with_hydra)


class HandWrittenLoop:
    """The loop that one would write by hand, on one device or as one rank of DistributedDataParallel.

    A good one: a fused optimizer, batches that are fetched from memory by one indexing call, and no figure that is read
    from the device before the end of an epoch.
    """

    def __init__(self, config: dict, rank: int = 0, world_size: int = 1) -> None:
        trainer, section, precision = config["trainer"], config["model"], str(config["trainer"]["precision"])
        self.seed, self.batch_size = config["seed"], config["data"]["batch_size"]
        self.rank, self.world_size = rank, world_size
        self.smoothing, self.max_norm = section["label_smoothing"], trainer["gradient_clip_val"]
        use_gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda", rank) if use_gpu else torch.device("cpu")
        pl.seed_everything(self.seed, verbose=False)
        data = instantiate(data_section(config["data"]), _convert_="all")
        self.samples = {split: (samples.inputs, samples.labels) for split, samples in data.samples.items()}
        # The network alone, with the first weights that the project draws.
        net = instantiate({**section, "_partial_": True}, _convert_="all")(spec=data.spec).net.to(self.device)
        net = net.double() if precision == "64-true" else net
        net = net.to(memory_format=torch.channels_last) if config["channels_last"] else net
        if config["compile"]:
            net.compile()
        self.net, self.parameters = net, list(net.parameters())
        self.optimizer = instantiate(section["optimizer"])(self.parameters)
        self.scheduler = instantiate(section["scheduler"])(self.optimizer)
        if world_size > 1:
            devices = [rank] if use_gpu else None
            self.net = DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True)
        dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
        self.autocast = torch.autocast(self.device.type, dtype) if precision.endswith("mixed") else nullcontext()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "16-mixed")

    def epoch(self, number: int) -> list[float]:
        """Trains and validates; returns the loss and the accuracy of both, over the samples of all ranks."""
        inputs, labels = self.samples["train"]
        order = torch.randperm(len(labels), generator=seeded(self.seed, number))
        self.net.train()
        sums = self._zeros()
        for stop in range(self.batch_size, len(order) + 1, self.batch_size):
            rows = order[stop - self.batch_size + self.rank : stop : self.world_size]
            x, y = self._on_device(inputs[rows], labels[rows])
            with self.autocast:
                logits = self.net(x)
                loss = F.cross_entropy(logits, y, label_smoothing=self.smoothing)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            if self.max_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self._count(sums, logits.detach(), y, loss.detach())
        self.scheduler.step()
        return [*self._means(sums), *self._validate()]

    @torch.inference_mode()
    def _validate(self) -> list[float]:
        inputs, labels = self.samples["val"]
        self.net.eval()
        sums = self._zeros()
        for start in range(0, len(labels), self.batch_size):
            rows = slice(start + self.rank, start + self.batch_size, self.world_size)
            x, y = self._on_device(inputs[rows], labels[rows])
            with self.autocast:
                logits = self.net(x)
                loss = F.cross_entropy(logits, y)
            self._count(sums, logits, y, loss)
        return self._means(sums)

    def _on_device(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), device=self.device) for name in ("loss", "right", "samples")}

    @staticmethod
    def _count(sums: dict[str, Tensor], logits: Tensor, y: Tensor, loss: Tensor) -> None:
        sums["loss"].add_(loss, alpha=len(y))
        sums["right"].add_((logits.argmax(dim=1) == y).sum())
        sums["samples"].add_(len(y))

    def _means(self, sums: dict[str, Tensor]) -> list[float]:
        totals = torch.stack(list(sums.values()))
        if self.world_size > 1:
            torch.distributed.all_reduce(totals)
        return (totals[:2] / totals[2]).tolist()


class Connection:
    """In a measured process: waits for each turn, and reports what it took."""

    def __init__(self, address: str, token: str) -> None:
        host, port = address.rsplit(":", 1)
        self.file = socket.create_connection((host, int(port))).makefile("rw", encoding="utf-8")
        self.report(token=token)

    def wait(self) -> None:
        if not self.file.readline():
            raise SystemExit("the benchmark has ended")

    def report(self, **figures: object) -> None:
        print(json.dumps(figures), file=self.file, flush=True)


class Turns(Callback):
    """Holds a run of the project at the start of each turn; what an epoch leaves to do counts until the next begins."""

    def __init__(self, address: str, token: str, num_epochs: int, weights: str | None) -> None:
        self.address, self.token, self.num_epochs, self.weights = address, token, num_epochs, weights
        self.start = self.waited = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.connection = Connection(self.address, self.token)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch % self.num_epochs:
            return
        if trainer.current_epoch:
            seconds = time.perf_counter() - self.start
            if self.weights and trainer.is_global_zero:
                torch.save(pl_module.net.state_dict(), self.weights)
            self.connection.report(seconds=seconds, waited=self.waited)
        self.connection.wait()
        self.start, self.waited = time.perf_counter(), 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.waited += getattr(trainer.train_dataloader, "seconds_waited", 0.0)


def work() -> None:
    """The entry of a measured process, whose configuration comes as JSON on the standard input."""
    ignore_warnings(*IGNORED_WARNINGS)
    config = json.load(sys.stdin)
    launch(RUNNERS[config["turns"].pop("side")], config)


def run_project(config: dict, plan: Plan) -> None:
    from digit_classifier import train  # the loop's process does not need what it imports

    turns = {"_target_": "training.Turns", **config["turns"]}
    train.run({**config, "callbacks": {**config["callbacks"], "turns": turns}}, plan)


def run_lightning(config: dict, plan: Plan) -> None:
    """What Lightning's own documentation would have one write, with the network and the data of the project."""
    pl.seed_everything(config["seed"], verbose=False)
    data = instantiate(data_section(config["data"]), _convert_="all")
    model = instantiate({**config["model"], "_partial_": True}, _convert_="all")(spec=data.spec)
    folder, given = config["paths"]["output_dir"], config["trainer"]
    trainer = pl.Trainer(
        accelerator=given["accelerator"],
        devices=1,
        max_epochs=-1,
        precision=given["precision"],
        gradient_clip_val=given["gradient_clip_val"],
        num_sanity_val_steps=given["num_sanity_val_steps"],
        callbacks=[ModelCheckpoint(folder, monitor="val/loss", save_last=True), Turns(**config["turns"])],
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)


def run_loop(config: dict, plan: Plan) -> None:
    rank, world_size, turns = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), config["turns"]
    if world_size > 1:
        use_gpu = config["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
        if use_gpu:
            torch.cuda.set_device(rank)
        torch.distributed.init_process_group("nccl" if use_gpu else "gloo")
    loop, number = HandWrittenLoop(config, rank, world_size), 0
    connection = Connection(turns["address"], turns["token"])
    while True:
        connection.wait()
        start = time.perf_counter()
        for _ in range(turns["num_epochs"]):
            loop.epoch(number)
            number += 1
        seconds = time.perf_counter() - start
        if turns["weights"] and rank == 0:
            net = loop.net.module if world_size > 1 else loop.net
            torch.save(net.state_dict(), turns["weights"])
        connection.report(seconds=seconds)


RUNNERS = {"project": run_project, "loop": run_loop, "plain loop": run_loop, "lightning": run_lightning}


class Contestant:
    """One or several processes that train a model together and take their turns, until the end of a `with` block."""

    def __init__(
        self,
        options: list[str],
        num_epochs: int,
        side: str = "project",
        num_ranks: int = 1,
        weights: str | None = None,
    ) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        if num_ranks > 1:
            options = [*options, "strategy=ddp", f"trainer.devices={num_ranks}"]
        config = compose_train([*options, *ENDLESS, f"paths.output_dir={self.folder.name}"])
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(0.5)
        turns = {"address": "{}:{}".format(*self.server.getsockname()), "token": secrets.token_hex()}
        config["turns"] = {**turns, "num_epochs": num_epochs, "weights": weights, "side": side}
        self.errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115  # closed in __exit__
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import training; training.work()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            text=True,
            env=measured_environment(ALLOCATOR if side == "loop" else {}),
        )
        with self.process.stdin as stdin:
            json.dump(config, stdin)
        self.ranks = [self._accept(turns["token"]) for _ in range(num_ranks)]

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()
        self.errors.close()

    def turn(self) -> dict[str, float]:
        """Returns the figures of the rank that took longest."""
        try:
            for rank in self.ranks:
                print("go", file=rank, flush=True)
            figures = [json.loads(rank.readline()) for rank in self.ranks]
        except (OSError, ValueError):
            self._fail()
        return max(figures, key=lambda of_rank: of_rank["seconds"])

    def _accept(self, token: str):
        while True:
            try:
                connection, _ = self.server.accept()
            except TimeoutError:
                if self.process.poll() is not None:
                    self._fail()
                continue
            connection.settimeout(None)
            rank = connection.makefile("rw", encoding="utf-8")
            if token in rank.readline():  # else it is a stranger
                return rank

    def _fail(self) -> None:
        try:
            self.process.wait(60)  # the launcher ends the other ranks first
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._end()
        self.errors.seek(0)
        sys.exit(f"error: a measured process has ended:\n{self.errors.read()[-5000:]}")

    def _end(self) -> None:
        for rank in getattr(self, "ranks", []):
            rank.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.server.close()
        self.folder.cleanup()


def measured_environment(more: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **more, "PYTHONPATH": path}


def largest_difference(options: list[str], num_epochs: int, num_ranks: int) -> float:
    """Trains both sides for a turn in float64, and returns the largest difference of their weights."""
    with tempfile.TemporaryDirectory() as folder:
        states = []
        for side in ("loop", "project"):
            file = Path(folder, f"{side}.pt")
            with Contestant([*options, *EXACT], num_epochs, side, num_ranks, str(file)) as contestant:
                contestant.turn()
            states.append(torch.load(file, weights_only=True))
    return max((states[0][name] - weight).abs().max().item() for name, weight in states[1].items())


def measure_rounds(
    sides: Sequence[str], options: list[str], num_epochs: int, num_ranks: int, num_rounds: int
) -> Rounds:
    """Returns the seconds of each side in each round; a turn before the first round warms each up."""
    rounds: Rounds = {side: [] for side in sides}
    with ExitStack() as stack:
        contestants = {side: stack.enter_context(Contestant(options, num_epochs, side, num_ranks)) for side in sides}
        for number in range(-1, num_rounds):
            for side in sides if number % 2 else reversed(sides):
                seconds = contestants[side].turn()["seconds"]
                if number >= 0:
                    rounds[side].append(seconds)
    return rounds


def median_and_interval(ratios: list[float]) -> tuple[float, list[float]]:
    """Returns the median and its 95 % interval, whatever the distribution: two order statistics.

    Fewer than six ratios are too few for it; their range is returned.
    """
    ordered, number = sorted(ratios), len(ratios)
    outside, below = 0, 1 / 2**number
    while below <= 0.025:
        outside += 1
        below += math.comb(number, outside) / 2**number
    place = max(outside, 1)
    return statistics.median(ordered), [ordered[place - 1], ordered[-place]]


def measure(name: str, case: Case, options: list[str], num_rounds: int) -> list[str]:
    """Returns the row of a case."""
    options = [*case.options, *options]
    config = compose_train([*options, "paths.output_dir=."])
    num_samples = len(instantiate(data_section(config["data"]), _convert_="all").samples["train"])
    num_steps = case.num_epochs * (num_samples // config["data"]["batch_size"])
    row = [name]
    for num_ranks, sides in ((1, SIDES), (NUM_DEVICES, SIDES[:2])):
        if num_ranks > 1 and not case.with_ddp:
            return [*row, "", ""]
        difference = largest_difference(options, case.num_epochs, num_ranks)
        if not difference < TOLERANCE:
            sys.exit(f"error: {name}: the weights of the loop and of the project differ by {difference:.1e}.")
        rounds = measure_rounds(sides, options, case.num_epochs, num_ranks, num_rounds)
        row.append(f"{statistics.median(rounds['loop']) / num_steps * 1e3:.1f} ms")
        for side in sides[1:]:
            ratios = [theirs / ours for theirs, ours in zip(rounds[side], rounds["project"], strict=True)]
            median, (low, high) = median_and_interval(ratios)
            bound = 0.0 if side != "loop" else case.bound if num_ranks == 1 else BOUND_OF_DDP
            row.append(at_least(median, bound, f"{median:.2f} ({low:.2f} to {high:.2f})"))
            say(f"{name}, {num_ranks} processes, beside the {side}: {row[-1]}")
        row += [f"{case.bound:.2f}"] if num_ranks == 1 else []
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("options", nargs="*", help="of train, for each case")
    given = parser.parse_intermixed_args()
    print_table(
        [
            "network",
            "a step of the loop",
            "beside the loop",
            "beside the loop as one would start it",
            "beside plain Lightning",
            "bound beside the loop",
            "a step of the loop with DDP",
            f"ddp beside it; bound {BOUND_OF_DDP}",
        ],
        [measure(name, CASES[name], given.options, given.rounds) for name in given.cases],
    )


if __name__ == "__main__":
    main()
