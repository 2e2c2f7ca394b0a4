"""Checkpoint files are written as a whole or not at all, and the newest one that is not damaged is found."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from {{ cookiecutter.package_name }}.engine.atomic import remove_temporary_files
from {{ cookiecutter.package_name }}.engine.errors import Fault, UserError
from {{ cookiecutter.package_name }}.engine.training import checkpoints
from {{ cookiecutter.package_name }}.engine.training.checkpoint_io import AtomicCheckpointIO, is_damaged, sum_file


def epoch_in(path: Path) -> int:
    epoch: int = torch.load(path, weights_only=True)["epoch"]
    return epoch


def save(epoch: int, path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"epoch": epoch, "weights": torch.zeros(1000)}, path)


def test_last_checkpoint_lies_beside_the_one_before_it(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save(epoch, tmp_path / "last.ckpt")
    names = ["last.ckpt", "last.ckpt.sha256", "previous.ckpt", "previous.ckpt.sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (epoch_in(tmp_path / "last.ckpt"), epoch_in(tmp_path / "previous.ckpt")) == (3, 2)
    sums = [path.name for path in tmp_path.glob("*.sha256")]
    assert subprocess.run(["sha256sum", "--check", "--quiet", *sums], cwd=tmp_path, check=False).returncode == 0
    AtomicCheckpointIO().remove_checkpoint(tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == names[2:]


def test_objects_that_a_module_adds_are_left_out_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A habit of pytorch-forecasting's modules, whose checkpoints would not load again."""
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    sizes = [1, (2, torch.Size([3]))]
    weight = torch.nn.Parameter(torch.ones(1))
    special = {"loss": np.float32(0.5), "sizes": sizes, "weight": weight, "net": torch.nn.ReLU(), "when": {"at": path}}
    checkpoint = {
        "state_dict": torch.nn.Linear(1, 1).state_dict(),
        "hyper_parameters": {"net": torch.nn.ReLU(), "lr": 1},
        "special": special,
        "object": torch.nn.ReLU(),
        "vocabulary": {np.int64(3): {np.int64(1)}},
        "optimizer_states": [{"param_groups": [{"lr": np.float64(0.1)}]}],
    }
    for _ in range(2):
        io.save_checkpoint(checkpoint, path)
    found = torch.load(path, weights_only=True)
    assert found["special"] == {"loss": 0.5, "sizes": sizes, "weight": weight, "when": {}}
    assert found["hyper_parameters"] == {"lr": 1}
    assert "object" not in found
    assert (found["vocabulary"], found["optimizer_states"]) == ({3: {1}}, [{"param_groups": [{"lr": 0.1}]}])
    assert found["state_dict"].keys() == {"weight", "bias"}
    assert checkpoint["special"] is special, "what Lightning goes on to use is left as it is"
    with pytest.raises(UserError, match=r"the checkpoint does not hold 'object', for which on_load_checkpoint looks"):
        io.load_checkpoint(path)["object"]
    (record,) = caplog.records
    assert record.getMessage().endswith(" added as object (ReLU), special.net (ReLU), special.when.at (PosixPath)")


def test_disk_that_is_full_leaves_the_earlier_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    save(1, tmp_path / "last.ckpt")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(2, tmp_path / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("step", ["replace", "unlink", "fsync"])
def test_kill_between_any_two_steps_loses_no_checkpoint(
    step: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised instead of killed, before each call in turn that changes what is on the disk."""
    module = os if step == "fsync" else Path
    real, calls = getattr(module, step), []

    def dies(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == number:
            raise InterruptedError
        return real(*arguments, **options)

    number = 0
    while number == 0 or len(calls) >= number:
        number += 1
        folder = tmp_path / str(number)
        save(1, folder / name)
        save(2, folder / name)
        calls.clear()
        monkeypatch.setattr(module, step, dies)
        try:
            save(3, folder / name)
        except InterruptedError:
            pass
        finally:
            monkeypatch.setattr(module, step, real)
        intact = [path for path in folder.glob("*.ckpt") if not is_damaged(path)]
        assert {epoch_in(path) for path in intact} & {2, 3}, f"before call {number} of {step}"
        assert intact == list(folder.glob("*.ckpt")), "nothing is taken for damaged"
        save(4, folder / name)
        assert not is_damaged(folder / name)
    assert number - 1 >= (2 if name == "last.ckpt" else 1), "nothing was interrupted"


def flipped(contents: bytes) -> bytes:
    middle = len(contents) // 2
    return contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :]


@pytest.mark.parametrize(
    "spoil", [lambda contents: contents[:-100], flipped, lambda contents: b"", lambda contents: b"of another kind"]
)
def test_damaged_checkpoint_is_skipped_and_reported(
    spoil: Callable[[bytes], bytes], best_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = torch.load(best_checkpoint, weights_only=True)
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint({**contents, "global_step": step}, tmp_path / "last.ckpt")
    assert checkpoints.newest_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    (tmp_path / "last.ckpt").write_bytes(spoil((tmp_path / "last.ckpt").read_bytes()))
    assert checkpoints.newest_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(Fault, match=r"no checkpoint in .* can be read .*: start another run") as caught:
        checkpoints.newest_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_checkpoint_without_its_sum_is_taken_as_it_is(tmp_path: Path) -> None:
    """Also one whose sum a power cut has left empty, or full of zeros."""
    save(1, tmp_path / "last.ckpt")
    sum_of_last = sum_file(tmp_path / "last.ckpt")
    for left in (b"", bytes(76)):
        sum_of_last.write_bytes(left)
        assert not is_damaged(tmp_path / "last.ckpt")
    sum_of_last.write_bytes(b"\xff\xfe")
    assert is_damaged(tmp_path / "last.ckpt")
    sum_of_last.unlink()
    assert not is_damaged(tmp_path / "last.ckpt")


def test_save_waits_for_the_disk_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the checkpoint and for its name in the folder, and not for the sums: each wait may take milliseconds."""
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    for number in (1, 2, 3):
        save(number, tmp_path / "last.ckpt")
        assert len(calls) == 2 * number


def test_what_a_killed_save_has_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from digit_classifier.engine.atomic import atomic_write\n"
        "with atomic_write(Path(sys.argv[1]) / 'best.ckpt'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    remove_temporary_files(tmp_path)
    assert not list(tmp_path.iterdir())


def test_checkpoint_is_streamed_to_the_disk_and_never_held_in_memory(tmp_path: Path) -> None:
    """The peak of the process grows by less than half of what the file takes."""
    code = (
        "import resource, sys, torch\n"
        "from digit_classifier.engine.training.checkpoint_io import AtomicCheckpointIO\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "weights = torch.ones(2**26)\n"  # 256 MiB
        "AtomicCheckpointIO().save_checkpoint({'epoch': 1}, sys.argv[1] + '/warm.ckpt')\n"
        "before = peak()\n"
        "AtomicCheckpointIO().save_checkpoint({'epoch': 1, 'weights': weights}, sys.argv[1] + '/large.ckpt')\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # KiB
    assert grown < 2**17
    assert not is_damaged(tmp_path / "large.ckpt")
