"""What the tests share: commands run as a user runs them, in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.quiet import QUIET

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    for quiet in QUIET:
        line = f"ignore:{quiet.message}:{quiet.category.__name__}:{quiet.module}"
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="not run: there is no GPU here"))


def run_command(verb: str, *options: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`python -m <package>.<verb> <options>` in the folder `cwd`, with every warning an error."""
    environment = os.environ | {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"{package.__name__}.{verb}", *options]
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    if check:
        assert process.returncode == 0, process.stdout + process.stderr
    return process


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
