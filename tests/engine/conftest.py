"""What the tests share: commands run as a user runs them, in processes of their own."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

{% if cookiecutter.data_kind == "images" %}
import numpy as np
{% endif %}
import pytest
import torch
{% if cookiecutter.data_kind == "images" %}
from PIL import Image
from sklearn.datasets import load_digits
{% endif %}

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.warning_filters import IGNORED_WARNINGS

Command = Callable[..., subprocess.CompletedProcess[str]]

# In double precision the strategies agree but for the last digits.
EXACT = ("trainer=cpu", "trainer.precision=64-true", "trainer.max_epochs=3")
TWO_PROCESSES = ("strategy=ddp", "trainer.devices=2")
HANGS = 600  # seconds after which a command is taken to hang; a busy machine takes ten times as long as a quiet one


def pytest_configure(config: pytest.Config) -> None:
    for quiet in IGNORED_WARNINGS:
        line = f"ignore:{quiet.message}:{quiet.category.__name__}:{quiet.module}"
        config.addinivalue_line("filterwarnings", line)
    # What a script starts with `&` ignores Ctrl-C, and hands that on to the commands under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="not run: there is no GPU here"))


def unrehearsed(verb: str, options: tuple[str, ...]) -> list[str]:
    """The rehearsal of the export takes longer than a training here; tests of it ask for it."""
    asked = any(option.startswith(("rehearse_export=", "resume=")) for option in options)
    return ["rehearse_export=false"] if verb == "train" and not asked else []


def run_command(verb: str, *options: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`python -m <package>.<verb> <options>` in the folder `cwd`, with every warning an error."""
    environment = os.environ | {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", package.__name__, verb, *options, *unrehearsed(verb, options)]
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANGS)
    if check:
        assert process.returncode == 0, process.stdout + process.stderr
    return process


@contextmanager
def started(verb: str, *options: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """The running command, leader of a process group of its own; what is left of the group ends with the test."""
    command = [sys.executable, "-m", package.__name__, verb, *options, *unrehearsed(verb, options)]
    with subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Until a line that it prints starts with the words."""
    assert process.stdout is not None
    assert any(line.startswith(words) for line in process.stdout), process.communicate()


def is_empty_soon(group: int) -> bool:
    """Whether nobody is left of a group of processes; one that was just starting sees that it is alone a bit later."""
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def assert_ends_by_interruption(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, as a terminal sends it to all processes: none is left, and there is one sentence."""
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert is_empty_soon(process.pid), "processes are left"
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


{% if cookiecutter.data_kind == "images" %}
@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits of scikit-learn's, 40 pictures each as JPEG and PNG, in a folder for each label."""
    root, digits = tmp_path_factory.mktemp("pictures"), load_digits()
    for digit in range(3):
        (root / f"digit {digit}").mkdir()
        for number, image in enumerate(digits.images[digits.target == digit][:40]):
            picture = Image.fromarray((image * 15).astype(np.uint8)).resize((20, 16))
            picture.save(root / f"digit {digit}" / f"{number:02}.{'jpg' if number % 2 else 'png'}")
    return root


{% endif %}
@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run of two epochs in it."""
    folder = tmp_path_factory.mktemp("workplace")
    run_command("train", "trainer=cpu", "trainer.max_epochs=2", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def run_dir(workplace: Path) -> Path:
    (found,) = (workplace / "logs/train/runs").iterdir()
    return found


@pytest.fixture(scope="session")
def best_checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints/best.ckpt"


@pytest.fixture(scope="session")
def bundle(workplace: Path, best_checkpoint: Path) -> Path:
    """What `export` writes by default; tests that change it take a copy."""
    run_command("export", f"ckpt_path={best_checkpoint}", cwd=workplace)
    return workplace / "artifacts" / package.__name__ / "1"


class Keys(NamedTuple):
    """Files of keys: a pair to sign and verify with, and the public key of another pair."""

    private: Path
    public: Path
    other_public: Path


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    from cryptography.hazmat.primitives.asymmetric import ec  # here: it comes with model-signing
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    folder = tmp_path_factory.mktemp("keys")
    for name in ("signing", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
    return Keys(folder / "signing.pem", folder / "signing.pub", folder / "other.pub")


def torchrun(folder: Path, *arguments: str) -> str:
    """What its processes printed."""
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


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
