"""The strategy changes the speed, never the result: real processes, double precision."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_command

import {{ cookiecutter.package_name }} as package

EXACT = ("trainer=cpu", "trainer.precision=64-true", "trainer.max_epochs=3", "model.net.dropout=0")
TWO_PROCESSES = ("strategy=ddp", "trainer.devices=2")
STRATEGIES = {"single": (), "dp": ("strategy=dp",), "ddp": TWO_PROCESSES}
# The training split leaves a remainder of 41 samples in each epoch.
MICRO, CLIPPED, AUGMENTED = "data.micro_batch_size=16", "trainer.gradient_clip_val=0.1", "data.max_shift=1"


def trained(folder: Path, *options: str) -> Path:
    run_command("train", *options, cwd=folder)
    (run_dir,) = (folder / "logs/train/runs").iterdir()
    return run_dir


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run_dir / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
    return state


def curves(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/loss", "val/loss", "test/loss") if row[name]]


def assert_same_result(found: Path, expected: Path, tolerance: float = 1e-10) -> None:
    assert list(weights(found)) == list(weights(expected))
    for name, weight in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], weight, rtol=0, atol=tolerance)
    assert curves(found) == pytest.approx(curves(expected), abs=tolerance)
    assert len(curves(expected)) == 7


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("single"), *EXACT)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("ddp"), *EXACT, *TWO_PROCESSES)


def test_ddp_ends_with_the_weights_and_curves_of_single(single: Path, ddp: Path) -> None:
    assert_same_result(ddp, single)


def test_dp_ends_with_the_weights_and_curves_of_single(single: Path, tmp_path: Path) -> None:
    """On the CPU it is the identity; tests/unit/test_dp.py shows its replicas."""
    assert_same_result(trained(tmp_path, *EXACT, "strategy=dp"), single)


def test_micro_batches_change_nothing(single: Path, tmp_path: Path) -> None:
    assert_same_result(trained(tmp_path, *EXACT, *TWO_PROCESSES, MICRO), single)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((MICRO, CLIPPED, AUGMENTED), id="all"),
        pytest.param((MICRO,), id="micro-batches", marks=pytest.mark.slow),
        pytest.param((CLIPPED,), id="clipping", marks=pytest.mark.slow),
        pytest.param((AUGMENTED,), id="augmentation", marks=pytest.mark.slow),
        pytest.param(("data.batch_size=90",), id="another remainder", marks=pytest.mark.slow),
    ],
)
def test_strategies_agree_with_options(options: tuple[str, ...], single: Path, tmp_path: Path) -> None:
    found = {}
    for name, strategy in STRATEGIES.items():
        (tmp_path / name).mkdir()
        found[name] = trained(tmp_path / name, *EXACT, *strategy, *options)
    assert_same_result(found["dp"], found["single"])
    assert_same_result(found["ddp"], found["single"])
    changed = options != (MICRO,)
    assert (curves(found["single"]) != pytest.approx(curves(single), abs=1e-10)) == changed, "the options do nothing"


@pytest.mark.slow
def test_single_precision_drifts_no_further_than_rounding(tmp_path: Path) -> None:
    each_epoch = "+callbacks.each={_target_: lightning.pytorch.callbacks.ModelCheckpoint, save_top_k: -1}"
    places = "++callbacks.each.dirpath=$" + "{paths.output_dir}/checkpoints"
    options = ("trainer=cpu", "trainer.max_epochs=3", "model.net.dropout=0", each_epoch, places)
    options = (*options, "++callbacks.each.filename='{epoch}'", "callbacks.best=null")
    found = {}
    for name, strategy in STRATEGIES.items():
        (tmp_path / name).mkdir()
        found[name] = trained(tmp_path / name, *options, *strategy)
    for name in ("dp", "ddp"):
        first, expected = weights(found[name], "epoch=0"), weights(found["single"], "epoch=0")
        assert max((first[key] - expected[key]).abs().max().item() for key in first) <= 1e-5
        metrics = [json.loads((found[key] / "metrics.json").read_text(encoding="utf-8")) for key in (name, "single")]
        assert abs(metrics[0]["test/acc"] - metrics[1]["test/acc"]) <= 2 / 360 + 1e-9


def test_ddp_leaves_one_run_directory_with_one_log(single: Path, ddp: Path) -> None:
    alone, together = (sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (single, ddp))
    assert together == alone
    assert (ddp / "train.log").read_text(encoding="utf-8").count("training ") == 1


# Sets of several sizes, evaluated in one start of the processes.
SIZES = """
import json

import lightning.pytorch as pl
import torch
from torch import nn

from PACKAGE.data.samples import SamplesInMemory, evaluation_loader
from PACKAGE.data.spec import DataSpec
from PACKAGE.models.classifier import Classifier
from PACKAGE.models.mlp import MLP
from PACKAGE.quiet import QUIET, quieten
from PACKAGE.strategies.devices import resolve_devices
from PACKAGE.strategies.launch import build_strategy

OPTIONS = dict(name="ddp", find_unused_parameters=False, gradient_as_bucket_view=True, static_graph=False,
               bucket_cap_mb=25, compression="none", powersgd_rank=1, powersgd_start_step=2, max_restarts=0)

class Samples(pl.LightningDataModule):
    def __init__(self, size):
        super().__init__()
        numbers = torch.Generator().manual_seed(size)
        inputs = torch.randint(256, (size, 1, 8, 8), dtype=torch.uint8, generator=numbers)
        self.samples = SamplesInMemory(inputs, torch.randint(10, (size,), generator=numbers))

    def test_dataloader(self):
        return evaluation_loader(self.samples, 64, self.trainer)

quieten(*QUIET)
devices = resolve_devices("cpu", None, "ddp")
spec = DataSpec("set", "classification", (1, 8, 8), "uint8", (0.0, 255.0), tuple("0123456789"), (128.0,), (70.0,))
found = {}
for size in (1, 5, 359, 360):
    torch.manual_seed(1)
    model = Classifier(spec, lambda spec: MLP(spec, [32], 0.0), torch.optim.SGD)
    strategy = build_strategy(OPTIONS, devices)
    trainer = pl.Trainer(accelerator="cpu", devices=devices.for_trainer(), strategy=strategy, logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False)
    (figures,) = trainer.test(model, datamodule=Samples(size), verbose=False)
    found[size] = {**figures, "counted": int(model.confusion_matrix.sum())}
if trainer.is_global_zero:
    print("FOUND " + json.dumps(found))
"""


def evaluated(folder: Path, num_processes: int) -> dict[str, dict[str, float]]:
    (folder / "sizes.py").write_text(SIZES.replace("PACKAGE", package.__name__), encoding="utf-8")
    printed = torchrun(folder, "--standalone", "--nproc-per-node", str(num_processes), "sizes.py")
    (line,) = (line for line in printed.splitlines() if line.startswith("FOUND "))
    found: dict[str, dict[str, float]] = json.loads(line.removeprefix("FOUND "))
    return found


def torchrun(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_evaluation_counts_every_sample_once_on_one_two_and_three_processes(tmp_path: Path) -> None:
    """A rank without a sample too: one sample on two processes."""
    alone = evaluated(tmp_path, 1)
    for num_processes in (2, 3):
        together = evaluated(tmp_path, num_processes)
        for size, figures in together.items():
            assert figures["counted"] == int(size)
            assert figures["test/acc"] == alone[size]["test/acc"]
            assert figures["test/f1"] == alone[size]["test/f1"]
            assert figures["test/loss"] == pytest.approx(alone[size]["test/loss"], rel=1e-6)


def test_torchrun_trains_what_the_command_trains(ddp: Path, tmp_path: Path) -> None:
    printed = torchrun(tmp_path, "--nproc-per-node", "2", "-m", f"{package.__name__}.train", "strategy=ddp", *EXACT)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert_same_result(run_dir, ddp)
    assert printed.count("training ") == 1
    assert (run_dir / "train.log").read_text(encoding="utf-8").count("training ") == 1
    assert sorted(path.name for path in run_dir.iterdir()) == sorted(path.name for path in ddp.iterdir())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def together(folder: Path, commands: list[list[str]], environments: list[dict[str, str]]) -> list[str]:
    """What each command printed; all must end well."""
    base = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, cwd=folder, env=base | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command, own in zip(commands, environments, strict=True)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(commands), printed
    return printed


def test_two_nodes_agree_on_one_run_directory(ddp: Path, tmp_path: Path) -> None:
    """Two agents of torchrun on this machine, each for a node of its own."""
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=7", "--local-addr=127.0.0.1"]
    agent = [sys.executable, "-m", "torch.distributed.run", *meeting, f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    command = [*agent, "-m", f"{package.__name__}.train", "strategy=ddp", "trainer.num_nodes=2", *EXACT]
    printed = together(tmp_path, [command, command], [{}, {}])
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert_same_result(run_dir, ddp)
    assert sum(text.count("training ") for text in printed) == 1


def slurm(rank: int, port: int) -> dict[str, str]:
    """What `srun` sets for two tasks on one node."""
    sizes = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1, "STEP_NUM_NODES": 1}
    place = {"JOB_ID": 4711, "STEP_ID": 0, "JOB_NAME": "train", "NODELIST": "127.0.0.1", "NODEID": 0}
    own = {"PROCID": rank, "LOCALID": rank}
    environment = {f"SLURM_{name}": str(value) for name, value in (sizes | place | own).items()}
    return environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def test_srun_trains_what_the_command_trains(ddp: Path, tmp_path: Path) -> None:
    """Simulated by the variables that `srun` sets: SLURM itself is not measured."""
    port = free_port()
    command = [sys.executable, "-m", f"{package.__name__}.train", "strategy=ddp", *EXACT]
    printed = together(tmp_path, [command, command], [slurm(0, port), slurm(1, port)])
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert run_dir.name == "slurm-4711"
    assert_same_result(run_dir, ddp)
    assert printed[1] == ""


def test_strategy_that_contradicts_torchrun_is_refused_once(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        f"{package.__name__}.train",
    ]
    options = ["strategy=single", "trainer=cpu"]
    refused = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert refused.returncode != 0
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert "strategy=single is one process, but torchrun started 2: take strategy=ddp" in line
    assert not list((tmp_path / "logs/train/runs").iterdir())


DRAW = """
import pathlib

import torch
from lightning.pytorch.callbacks import Callback

class Draw(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pathlib.Path(f"rank{trainer.global_rank}.txt").write_text(str(torch.rand(3).tolist()))
"""


@pytest.mark.parametrize(
    "compression",
    [
        pytest.param("powersgd"),
        pytest.param("fp16", marks=pytest.mark.slow),
        pytest.param("bf16", marks=pytest.mark.slow),
    ],
)
def test_compressed_gradients_train_and_ranks_draw_their_own_dropout(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback `same_weights` holds the ranks against each other."""
    (tmp_path / "draw.py").write_text(DRAW, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    sent = (f"strategy.compression={compression}", "strategy.powersgd_start_step=2", "strategy.bucket_cap_mb=1")
    options = ("trainer=cpu", *TWO_PROCESSES, "trainer.max_epochs=3", "+callbacks.draw._target_=draw.Draw", *sent)
    run_dir = trained(tmp_path, *options)
    figures = curves(run_dir)
    assert figures[-2] < 0.7 * figures[0], "the loss does not fall"
    assert len({path.read_text(encoding="utf-8") for path in tmp_path.glob("rank*.txt")}) == 2


def test_sweep_leaves_its_job_folders_and_a_refused_job_stops_no_other(tmp_path: Path) -> None:
    options = ("-m", "model.optimizer.lr=0.01,-1,0.001", "trainer=cpu", "trainer.max_epochs=1", *TWO_PROCESSES)
    swept = run_command("train", *options, cwd=tmp_path, check=False)
    assert swept.returncode == 2
    assert "Invalid learning rate: -1" in swept.stderr
    assert not (tmp_path / "logs/train/runs").exists()
    (sweep,) = (tmp_path / "logs/train/multiruns").iterdir()
    assert sorted(path.name for path in sweep.iterdir()) == ["0", "2", "multirun.yaml"]
    assert all((sweep / job / "checkpoints/best.ckpt").is_file() for job in ("0", "2"))
