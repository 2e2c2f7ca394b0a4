"""The whole configuration passes through few files on its way from the command to `trainer.fit`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import {{ cookiecutter.package_name }} as package

MAX_FILES = 8
# Notes each file of the package in which a function is called with the whole configuration, until `fit` is called.
TRACED = """
import json, os, sys
import lightning.pytorch as pl
from PACKAGE import train

ROOT, visited = os.path.dirname(train.__file__) + os.sep, []

def fit(*args, **kwargs):
    sys.setprofile(None)
    print(json.dumps(visited))
    sys.stdout.flush()
    os._exit(0)

def trace(frame, event, argument):
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(ROOT):
        return
    arguments = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
    if any(isinstance(value, dict) and {"trainer", "model", "data"} <= value.keys() for value in arguments):
        visited.append((code.co_filename.removeprefix(ROOT), code.co_name))

pl.Trainer.fit = fit
train.commands.Training  # imported before, because to trace an import takes long
sys.setprofile(trace)
train.main()
"""


def test_configuration_passes_through_few_files_and_does_not_come_back(tmp_path: Path) -> None:
    """The command starts the processes, and each process builds and trains: each file is entered once in either."""
    code = TRACED.replace("PACKAGE", package.__name__)
    command = [sys.executable, "-c", code, "trainer=cpu", "rehearse_export=false"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    traced = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert traced.returncode == 0, traced.stderr
    visited = [tuple(place) for place in json.loads(traced.stdout.splitlines()[-1])]
    early, visited = visited[:2], visited[2:]  # what needs no torch is refused before
    assert early == [("engine/commands.py", "checked_main"), ("engine/early_checks.py", "checked")]
    assert visited[0] == ("train.py", "main")
    assert len({file for file, _ in visited}) <= MAX_FILES, visited
    begins = visited.index(("train.py", "run"))
    assert visited[begins + 1] == ("engine/workflows/training.py", "build")
    for part in (visited[:begins], visited[begins:]):
        files = [file for file, _ in part]
        entered = [file for number, file in enumerate(files) if number == 0 or files[number - 1] != file]
        own = [file for file in entered if file != "engine/distributed/launch.py"]  # it asks for the plan, and goes on
        assert len(own) == len(set(own)), entered
