"""The way of somebody new in a fresh clone, with installing: how long it takes until the first model is trained.

With the environment of the template, from its folder: .venv/bin/python benchmarks/first_steps.py

With `--tests`, how long the tests of the template take there instead.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tables import at_most, print_table, say

TEMPLATE = Path(__file__).parents[1]
NUM_PROJECTS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch, clone = Path(folder), Path(folder, "template")
        run(scratch, "git", "clone", "--quiet", str(TEMPLATE), str(clone))
        rows = tests(clone) if given.tests else first_steps(scratch, clone)
    for row in rows:
        text = f"{row[1]:.2f} s" if row[1] < 10 else f"{row[1]:.0f} s"
        row[1] = at_most(row[1], row[2], text)
        row[2] = f"{row[2]} s"
    print_table(["in a fresh clone", "measured", "bound"], rows)


def first_steps(scratch: Path, clone: Path) -> list[list[Any]]:
    """What is done, its seconds and the bound."""
    demo = run(clone, "make", "demo")
    bake = run(clone, "make", "bake", f"OUT={scratch}", "ARGS=--no-input")
    train = run(scratch / "digit-classifier", "make", "setup", "train")
    seconds = [generate(clone, scratch / "generated") for _ in range(NUM_PROJECTS)]
    return [
        ["`make demo`: two environments, training, verified bundle", demo, 180],
        ["`make bake`, then `make setup train` in the project", bake + train, 300],
        [f"generate a project, median of {NUM_PROJECTS}", statistics.median(seconds), 2],
    ]


def tests(clone: Path) -> list[list[Any]]:
    """As `first_steps`."""
    run(clone, "make", ".venv/ready")
    template, project = (run(clone, "make", f"test-{kind}") for kind in ("template", "project"))
    return [
        ["`make test-template`, its environment is there", template, 60],
        ["`make test`, with the environment of a project", template + project, 720],
    ]


def generate(clone: Path, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    return run(clone, ".venv/bin/cookiecutter", ".", "--no-input", "--output-dir", str(out))


def run(folder: Path, *words: str) -> float:
    """The seconds that a command takes; no environment of this template is on its path."""
    say(" ".join(words))
    path = [part for part in os.environ["PATH"].split(os.pathsep) if not part.startswith(str(TEMPLATE))]
    environment = {**os.environ, "PATH": os.pathsep.join(path)}
    start = time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: '{' '.join(words)}' ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
