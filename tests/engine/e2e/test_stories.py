"""From own data to a served model with the five commands of docs/data.md, word for word."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris

import digit_classifier

PROJECT = Path(digit_classifier.__file__).parents[2]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the project that shares its environment."""
    ignored = shutil.ignore_patterns(".*", "logs", "artifacts", "build", "engine_tests", "__pycache__")
    project = Path(shutil.copytree(PROJECT, tmp_path / "project", ignore=ignored))
    (project / ".venv").symlink_to(Path(sys.prefix))
    return project


def commands(project: Path) -> list[str]:
    text = (project / "docs/data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"in five commands:\n\n```bash\n(.*?)```", text, re.DOTALL)
    found = [line.split(" #")[0].strip() for line in block.splitlines()]
    assert len(found) == 5
    # The environment exists: make must not install it again.
    return [re.sub("^make ", "make --old-file .venv/ready ", command) for command in found]


def write_pictures(project: Path) -> None:
    """Writes pictures of two digits under the names in docs/data.md."""
    from PIL import Image

    digits = load_digits()
    for digit, label in enumerate(("cat", "dog")):
        folder = project / "pictures" / label
        folder.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == digit][:100], start=1):
            Image.fromarray((image * 15).astype(np.uint8)).resize((40, 32)).save(folder / f"{number}.jpg")


def write_table(project: Path) -> None:
    """Writes the iris data under the names in docs/data.md, and its first row to a file of its own."""
    iris = load_iris()
    rows = [[*values, "yes" if label else "no"] for values, label in zip(iris.data, iris.target, strict=True)]
    for name, width, file_rows in (("people.csv", 5, rows), ("row.csv", 4, rows[:1])):
        with (project / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow(["a", "b", "c", "d", "bought"][:width])
            writer.writerows(row[:width] for row in file_rows)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_own_data_is_served_after_five_commands(copied: Path) -> None:
    has_pictures = (copied / "src/digit_classifier/engine/data/image_folder.py").exists()
    (write_pictures if has_pictures else write_table)(copied)
    *first, serve, curl = commands(copied)
    environment = os.environ | {"PYTHONPATH": str(copied / "src"), "OMP_NUM_THREADS": "1"}
    for command in first:
        done = subprocess.run(["bash", "-c", command], cwd=copied, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    port = free_port()
    serving = ["bash", "-c", f'exec {serve} ARGS="port={port}"']
    with subprocess.Popen(serving, cwd=copied, env=environment, start_new_session=True) as server:
        try:
            asked = curl.replace("curl ", "curl --silent ").replace(":8000", f":{port}")
            for _ in range(300):
                done = subprocess.run(["bash", "-c", asked], cwd=copied, capture_output=True, text=True)
                if done.returncode == 0 or server.poll() is not None:
                    break
                time.sleep(0.2)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
    answer = json.loads(done.stdout)
    assert answer["label"] == ("cat" if has_pictures else "no")
    assert answer["probability"] > 0.6
