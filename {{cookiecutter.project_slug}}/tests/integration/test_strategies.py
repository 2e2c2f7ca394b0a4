"""The strategy changes the speed, never the result: real processes, double precision."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import run_command

EXACT = ("trainer=cpu", "trainer.precision=64-true", "trainer.max_epochs=3", "model.net.dropout=0")
TWO_PROCESSES = ("strategy=ddp", "trainer.devices=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, options in (("single", ()), ("dp", ("strategy=dp",)), ("ddp", TWO_PROCESSES)):
        folder = tmp_path_factory.mktemp(name)
        run_command("train", *EXACT, *options, cwd=folder)
        (found[name],) = (folder / "logs/train/runs").iterdir()
    return found


def curves(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/loss", "val/loss", "test/loss") if row[name]]


@pytest.mark.parametrize("strategy", ["dp", "ddp"])
def test_weights_and_loss_curves_are_those_of_single(runs: dict[str, Path], strategy: str) -> None:
    expected, found = (
        torch.load(runs[name] / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("single", strategy)
    )
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-10)
    assert curves(runs[strategy]) == pytest.approx(curves(runs["single"]), abs=1e-10)
    assert len(curves(runs["single"])) == 7


def test_ddp_leaves_one_run_directory_with_one_log(runs: dict[str, Path]) -> None:
    alone, together = (
        sorted(str(path.relative_to(runs[name])) for path in runs[name].rglob("*")) for name in ("single", "ddp")
    )
    assert together == alone
    assert (runs["ddp"] / "train.log").read_text(encoding="utf-8").count("training ") == 1


def test_evaluation_counts_every_sample_once(best_checkpoint: Path, tmp_path: Path) -> None:
    figures = {}
    for name, strategy in (("single", ()), ("ddp", TWO_PROCESSES)):
        folder = tmp_path / name
        folder.mkdir()
        # 51 batches of 7 and one of 3: two processes get 4 and 3, then 2 and 1.
        options = (f"ckpt_path={best_checkpoint}", "trainer=cpu", "data.batch_size=7", *strategy)
        run_command("evaluate", *options, cwd=folder)
        (run_dir,) = (folder / "logs/evaluate/runs").iterdir()
        assert (run_dir / "confusion_matrix.png").is_file()
        figures[name] = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    assert figures["ddp"]["test/acc"] == figures["single"]["test/acc"]
    assert figures["ddp"]["test/f1"] == pytest.approx(figures["single"]["test/f1"], rel=1e-6)
    assert figures["ddp"]["test/loss"] == pytest.approx(figures["single"]["test/loss"], rel=1e-6)


BOMB = """
import os
import pathlib

from lightning.pytorch.callbacks import Callback

class Bomb(Callback):
    def on_train_start(self, trainer, pl_module):
        pathlib.Path(f"rank{trainer.global_rank}.pid").write_text(str(os.getpid()))

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            raise RuntimeError("boom on purpose")
"""


def test_error_in_one_rank_ends_the_job_with_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.py").write_text(BOMB, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    options = ("trainer=cpu", *TWO_PROCESSES, "trainer.max_epochs=3", "+callbacks.bomb._target_=bomb.Bomb")
    failed = run_command("train", *options, cwd=tmp_path, check=False)
    assert failed.returncode == 1, failed.stderr
    assert "error: rank 1 raised an error: RuntimeError: boom on purpose" in failed.stderr
    assert failed.stderr.count("Traceback") == 1
    assert "bomb.py" in failed.stderr
    ranks = sorted(tmp_path.glob("rank*.pid"))
    assert len(ranks) == 2
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(int(rank.read_text(encoding="utf-8")), 0)


DRAW = """
import pathlib

import torch
from lightning.pytorch.callbacks import Callback

class Draw(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pathlib.Path(f"rank{trainer.global_rank}.txt").write_text(str(torch.rand(3).tolist()))
"""


def test_processes_draw_their_own_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "draw.py").write_text(DRAW, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    options = ("trainer=cpu", *TWO_PROCESSES, "trainer.max_epochs=1", "+callbacks.draw._target_=draw.Draw")
    run_command("train", *options, cwd=tmp_path)
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
