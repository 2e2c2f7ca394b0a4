"""What ends one process of a ddp run ends the whole run, soon, with one error; or starts it again, when asked to."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import TWO_PROCESSES, curves, run_command, trained, weights

ENDLESS = ("trainer=cpu", *TWO_PROCESSES, "callbacks.early_stopping=null")

# Writes where each rank is, and does there what the environment asks for.
FAULT = """
import os
import pathlib
import signal

from digit_classifier.engine.errors import UserError
from lightning.pytorch.callbacks import Callback

class Fault(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rank = trainer.global_rank
        if trainer.current_epoch == 1 and batch_idx == 0:
            pathlib.Path(f"rank{rank}.pid").write_text(str(os.getpid()))
        kind, epoch, index = os.environ.get("FAULT", "none 0 0").split()
        if (rank, trainer.current_epoch, batch_idx) != (1, int(epoch), int(index)):
            return
        if kind == "refuse":
            raise UserError("this rank alone")
        if kind == "raise":
            raise RuntimeError("boom on purpose")
        if kind == "die" and not pathlib.Path("died").exists():
            pathlib.Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "drift":
            next(pl_module.parameters()).data.mul_(1.5)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the module `fault`, and whatever a run leaves among the temporary files in `tmp`."""
    (tmp_path / "fault.py").write_text(FAULT, encoding="utf-8")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path


def ranks_of(folder: Path) -> list[int]:
    return [int(path.read_text(encoding="utf-8") or 0) for path in sorted(folder.glob("rank*.pid"))]


def is_alive(pid: int) -> bool:
    """A process that has ended, but that nobody has asked about yet, is a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def assert_nothing_is_left(folder: Path) -> None:
    until = time.monotonic() + 20
    while any(map(is_alive, ranks_of(folder))):
        assert time.monotonic() < until, "a rank outlives the run"
        time.sleep(0.1)
    left = [path.name for path in (folder / "tmp").iterdir()]
    assert [name for name in left if not name.startswith("torchinductor_")] == [], "torch's own cache alone may stay"


@pytest.mark.parametrize(
    ("number", "whom", "exit_code", "sentence"),
    [
        (signal.SIGKILL, "rank 1", 137, "error: rank 1 was ended by SIGKILL."),
        (signal.SIGTERM, "rank 1", 143, "error: ended by SIGTERM: what was saved until now stays."),
        (signal.SIGINT, "all", 130, "error: interrupted: what was saved until now stays."),
        (signal.SIGTERM, "launcher", 143, "error: ended by SIGTERM: what was saved until now stays."),
        (signal.SIGKILL, "launcher", -signal.SIGKILL, ""),  # a shell says 137
    ],
)
def test_signal_ends_the_whole_run(folder: Path, number: int, whom: str, exit_code: int, sentence: str) -> None:
    options = (*ENDLESS, "trainer.max_epochs=5000", "+callbacks.fault._target_=fault.Fault")
    command = [sys.executable, "-m", "digit_classifier", "train", *options]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=folder, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        while len(ranks_of(folder)) < 2 or 0 in ranks_of(folder):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        if whom == "all":  # as a terminal does with Ctrl-C
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if whom == "launcher" else ranks_of(folder)[1], number)
        said = process.communicate(timeout=20)[1]
    finally:  # a run that hangs ends with its test
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == exit_code, said
    lines = [line for line in said.splitlines() if "resource_tracker" not in line]  # it tidies up after the killed
    assert lines == [sentence] * bool(sentence)
    assert_nothing_is_left(folder)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raise 1 3", "rank 1 raised an error: RuntimeError: boom on purpose"),
        ("drift 1 3", "rank 1 and rank 0 hold different weights after epoch 2, first in 'net.1.features.0.weight'"),
    ],
)
def test_error_ends_the_run_with_one_traceback(
    folder: Path, fault: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", fault)
    options = (*ENDLESS, "trainer.max_epochs=3", "+callbacks.fault._target_=fault.Fault")
    failed = run_command("train", *options, cwd=folder, check=False)
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.startswith("error: ")
    assert error in failed.stderr
    assert failed.stderr.count("Traceback") == 1
    assert_nothing_is_left(folder)


def test_refusal_of_one_rank_ends_the_others_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "refuse 1 3")
    options = (*ENDLESS, "trainer.max_epochs=3", "+callbacks.fault._target_=fault.Fault")
    refused = run_command("train", *options, cwd=folder, check=False)
    assert (refused.returncode, refused.stderr) == (2, "error: this rank alone\n")
    assert_nothing_is_left(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("undisturbed"), *ENDLESS, "trainer.max_epochs=4")


def test_restarted_run_ends_with_the_weights_of_an_undisturbed_one(
    folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second epoch; at other moments in `make test-all`."""
    assert_goes_on("1 7", folder, undisturbed, monkeypatch)


def assert_goes_on(moment: str, folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`moment` is the epoch and the batch of a SIGKILL. Dropout is on: the random numbers go on where they were too."""
    monkeypatch.setenv("FAULT", f"die {moment}")
    options = ("trainer.max_epochs=4", "strategy.max_restarts=1", "+callbacks.fault._target_=fault.Fault")
    printed = run_command("train", *ENDLESS, *options, cwd=folder).stdout
    assert (folder / "died").exists()
    in_first_epoch = moment.startswith("0")
    assert ("goes on     from" in printed) != in_first_epoch, "in the first epoch there is nothing to go on from"
    (run_dir,) = (folder / "logs/train/runs").iterdir()
    expected, found = weights(undisturbed), weights(run_dir)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert curves(run_dir) == curves(undisturbed)
    columns = [(path / "metrics.csv").read_text(encoding="utf-8").splitlines() for path in (run_dir, undisturbed)]
    assert len(columns[0]) == len(columns[1]), "the epochs before the restart are in it, once"
    assert_nothing_is_left(folder)
