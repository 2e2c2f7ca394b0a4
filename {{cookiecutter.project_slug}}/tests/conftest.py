"""What the tests share. They hold for any data and any model: options that a data set needs go into `needed`."""

import os
import struct
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

PROJECT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = Path(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"][0]).name
CONFIG_DIRS = import_module(f"{PACKAGE}.engine.config").CONFIG_DIRS
VERSION_BASE = import_module(f"{PACKAGE}.engine.config.hydra_versions").VERSION_BASE
CHOICES = sorted({f"{path.parent.name}={path.stem}" for root in CONFIG_DIRS for path in root.glob("*/*.yaml")})

# A training of a few batches on the CPU, whatever the size of the data.
SHORT = (
    *("trainer=cpu", "strategy=single", "logger=csv", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
    *("trainer.limit_train_batches=2", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2"),
)


def pytest_configure(config: pytest.Config) -> None:
    for known in import_module(f"{PACKAGE}.engine.warning_filters").IGNORED_WARNINGS:
        line = f"ignore:{known.message}:{known.category.__name__}:{known.module}"
        config.addinivalue_line("filterwarnings", line)
    # Metrics warn of labels that no sample shows, as is likely in two batches.
    config.addinivalue_line("filterwarnings", "ignore::UserWarning:torchmetrics")


def compose_config(command: str, *options: str) -> dict[str, Any]:
    """The options of a command as plain dicts and lists, resolved."""
    import_module(f"{PACKAGE}.engine.config.command_line").register_with_hydra()
    with initialize_config_dir(str(CONFIG_DIRS[0]), **VERSION_BASE):
        config = compose(command, list(options), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    names = [str(name) for name in config if name != "hydra"]
    return OmegaConf.to_container(OmegaConf.masked_copy(config, names), resolve=True, throw_on_missing=True)


def existing(candidates: tuple[str, ...], *options: str) -> list[str]:
    """Those of the candidates that `train` takes beside the options: data and networks need not have any of ours."""

    def exists(candidate: str) -> bool:
        try:
            compose_config("train", "paths.output_dir=.", *options, candidate)
        except (HydraException, OmegaConfBaseException):
            return False
        return True

    return [candidate for candidate in candidates if exists(candidate)]


@pytest.fixture(scope="session")
def needed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Options that a data set cannot do without, by its choice: add those of your own."""
    root = tmp_path_factory.mktemp("data")
    write_image_folder(root / "images")
    write_mnist(root / "MNIST/raw")
    cache = f"paths.cache_dir={root / 'cache'}"
    return {
        "data=image_folder": [f"data.root={root / 'images'}", cache],
        "data=torchvision": [f"data.root={root}", cache],
    }


def write_image_folder(root: Path) -> None:
    """Random images in a folder for each of two labels."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 30, 16, 20, 3), dtype=np.uint8)
    for label, images in zip(("first", "second"), noise, strict=True):
        (root / label).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / label / f"{number:02}.png")


def write_mnist(folder: Path, num_samples: int = 200) -> None:
    """Random images in the files that torchvision downloads as MNIST."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (num_samples, 28, 28), dtype=np.uint8)
    labels = (np.arange(num_samples) % 10).astype(np.uint8)
    for split in ("train", "t10k"):
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (folder / f"{split}-{name}-ubyte").write_bytes(head + values.tobytes())


class Workplace:
    """A folder for runs and bundles; commands run in the project's folder, where its owner runs them."""

    def __init__(self, folder: Path) -> None:
        self.log_dir, self.artifact_dir = folder / "logs", folder / "artifacts"

    def run(self, command: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`python -m <package> <command> <options>`, which must succeed if `check`."""
        places = (f"paths.log_dir={self.log_dir}", f"paths.artifact_dir={self.artifact_dir}")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            [sys.executable, "-m", PACKAGE, command, *places, *options],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0 or not check, process.stdout + process.stderr
        return process

    def train(self, needed: dict[str, list[str]], *options: str) -> Path:
        """Trains the network of `train.yaml` on its data; returns the run directory."""
        compose_config("train", "paths.output_dir=.")
        data = f"data={HydraConfig.get().runtime.choices['data']}"
        self.run("train", *SHORT, "rehearse_export=false", *needed.get(data, []), *options)
        (run_dir,) = self.run_dirs("train")
        return run_dir

    def run_dirs(self, task: str) -> list[Path]:
        return sorted(self.log_dir.glob(f"{task}/runs/*"))
