"""Ranks that torchrun or srun started, and gradients that travel compressed: run inside a generated project."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXACT, HANGS, TWO_PROCESSES, assert_same_result, curves, trained

PACKAGE = "digit_classifier"


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("ddp"), *EXACT, *TWO_PROCESSES)


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
    printed = [process.communicate(timeout=HANGS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(commands), printed
    return printed


def test_two_nodes_agree_on_one_run_directory(ddp: Path, tmp_path: Path) -> None:
    """Two agents of torchrun on this machine, each for a node of its own."""
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=7", "--local-addr=127.0.0.1"]
    agent = [sys.executable, "-m", "torch.distributed.run", *meeting, f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    command = [*agent, "-m", PACKAGE, "train", "strategy=ddp", "trainer.num_nodes=2", *EXACT]
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
    command = [sys.executable, "-m", PACKAGE, "train", "strategy=ddp", *EXACT]
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
        PACKAGE,
        "train",
    ]
    options = ["strategy=single", "trainer=cpu"]
    refused = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert refused.returncode != 0
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert "strategy=single is one process, but torchrun started 2: take strategy=ddp" in line
    assert not (tmp_path / "logs").exists()


DRAW = """
import pathlib

import torch
from lightning.pytorch.callbacks import Callback

class Draw(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pathlib.Path(f"rank{trainer.global_rank}.txt").write_text(str(torch.rand(3).tolist()))
"""


def test_compressed_gradients_train_and_ranks_draw_numbers_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "draw.py").write_text(DRAW, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert_trains_compressed("powersgd", tmp_path, "+callbacks.draw._target_=draw.Draw")
    assert len({path.read_text(encoding="utf-8") for path in tmp_path.glob("rank*.txt")}) == 2


def assert_trains_compressed(compression: str, folder: Path, *options: str) -> None:
    """The callback `replica_check` holds the ranks against each other meanwhile."""
    sent = (f"strategy.compression={compression}", "strategy.powersgd_start_step=2", "strategy.bucket_cap_mb=1")
    run_dir = trained(folder, "trainer=cpu", *TWO_PROCESSES, "trainer.max_epochs=3", *sent, *options)
    assert json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))["test/acc"] > 0.85


BOMB = """
from lightning.pytorch.callbacks import Callback

class Bomb(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            raise RuntimeError("boom on purpose")
"""


def test_error_in_one_rank_of_torchrun_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.py").write_text(BOMB, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", PACKAGE, "train"]
    options = ["strategy=ddp", "trainer=cpu", "trainer.max_epochs=3", "+callbacks.bomb._target_=bomb.Bomb"]
    failed = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert failed.returncode == 1
    assert failed.stderr.count("RuntimeError: boom on purpose") == 1
    assert failed.stderr.count("Traceback") == 2, "that of the error, and torchrun's own"


DIES = """
import os
import pathlib
import signal

from lightning.pytorch.callbacks import Callback

class Dies(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.global_rank == 1 and trainer.current_epoch == 2 and not pathlib.Path("died").exists():
            pathlib.Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies.py").write_text(DIES, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    options = ["strategy=ddp", "trainer=cpu", "trainer.max_epochs=4", "+callbacks.dies._target_=dies.Dies"]
    command = [*agent, "-m", PACKAGE, "train", *options]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS, check=False)
    assert "needs TRAIN_RUN_NAME=<name> to find the run again" in refused.stderr
    named = {"TRAIN_RUN_NAME": "mine", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    (printed,) = together(tmp_path, [command], [named])
    assert (tmp_path / "died").exists()
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert run_dir.name == "mine"
    assert "goes on     from logs/train/runs/mine/checkpoints/last.ckpt" in printed
    assert len(curves(run_dir)) == 9, "each epoch is in metrics.csv once"
