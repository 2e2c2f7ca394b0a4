{% if cookiecutter.cluster != "none" %}
"""The command of the job file, with processes of this machine in the place of the cluster's."""

{% if cookiecutter.cluster == "slurm" %}
import csv
import json
{% endif %}
import os
import signal
import socket
import subprocess
import sys
{% if cookiecutter.cluster == "slurm" %}
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
{% else %}
from contextlib import suppress
{% endif %}
from pathlib import Path
{% if cookiecutter.cluster == "kubernetes" %}
from typing import Any
{% endif %}

import pytest
{% if cookiecutter.cluster == "kubernetes" %}
import yaml

import {{ cookiecutter.package_name }} as package
{% endif %}

DEPLOY = Path(__file__).parents[2] / "deploy"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def end(process: subprocess.Popen[str]) -> None:
    """Should the test have failed: politely, because torchrun's processes are in sessions of their own."""
    process.terminate()
    try:
        process.wait(timeout=20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


{% if cookiecutter.cluster == "slurm" %}
# Two machines with one process each. As srun does, it passes SIGTERM on, ends all when one fails, by SIGTERM too, and
# ends with the highest exit code.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys, time

assert sys.argv[1] == "--kill-on-bad-exit=1"
step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0"}
places = [{"SLURM_PROCID": rank, "SLURM_NODEID": rank} for rank in "01"]
tasks = [subprocess.Popen(sys.argv[2:], env={**os.environ, **step, **place}) for place in places]
signal.signal(signal.SIGTERM, lambda number, frame: [task.terminate() for task in tasks])
deadline = None
while None in [task.poll() for task in tasks]:
    if any(task.returncode for task in tasks):
        deadline = deadline or time.monotonic() + 2
        [task.terminate() if time.monotonic() < deadline else task.kill() for task in tasks]
    time.sleep(0.05)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
# A step that ends soon, perhaps after a signal for the script.
ENDED = """#!/bin/sh
trap '' TERM
sleep 0.2
test -z "$SIGNALLED" || kill -TERM "$PPID"
sleep 0.2
exit "$CODE"
"""
SCONTROL = """#!/bin/sh
test "$2" = 7 || test "$3" = 7 || exit 1
case "$1" in
show) echo "JobState=$STATE Reason=None PreemptEligibleTime=2026-11-23T10:00:00 PreemptTime=$PREEMPTED" ;;
*) echo "$@" >>scontrol.txt ;;
esac
"""
PYTHON = f"""#!/bin/sh
exec "{sys.executable}" "$@"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder on a cluster: the commands of SLURM, and what sbatch tells a script."""
    commands = {"bin/srun": SRUN, "bin/scontrol": SCONTROL, ".venv/bin/python": PYTHON}
    for name, text in commands.items():
        place_command(tmp_path / name, text)
    job = {"JOB_ID": 7, "JOB_NAME": "job", "NNODES": 2, "NTASKS": 2, "NTASKS_PER_NODE": 1, "NODELIST": "127.0.0.1"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("STATE", "RUNNING")
    monkeypatch.setenv("PREEMPTED", "None")
    return tmp_path


def place_command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@contextmanager
def submitted(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The script as SLURM starts it, in the folder where sbatch was called."""
    command = ["bash", str(DEPLOY / "slurm.sh"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes) as job:  # type: ignore[call-overload]
        try:
            yield job
        finally:
            end(job)


def figures(run_dir: Path, name: str) -> list[int]:
    """The epochs for which the run logged it."""
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file) if row[name]]


def requeued(folder: Path) -> list[str]:
    path = folder / "scontrol.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_job_on_two_machines_leaves_one_run_named_after_it(folder: Path) -> None:
    with submitted(folder, "trainer=cpu", "trainer.max_epochs=2") as job:
        printed, said = job.communicate(timeout=90)
    assert job.returncode == 0, said
    assert printed.count("batch 64 = 2 devices x 32") == 1
    (run_dir,) = (folder / "logs/train/runs").iterdir()
    assert run_dir.name == "slurm-7"
    assert [path.name for path in run_dir.glob("*.log")] == ["train.log"]
    assert "test/acc" in json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    assert not requeued(folder)


def test_job_that_was_ended_by_its_time_limit_goes_on_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = folder / "logs/train/runs/slurm-7"
    options = ("trainer=cpu", "trainer.max_epochs=12", "callbacks.early_stopping=null")
    with submitted(folder, *options) as job:
        until = time.monotonic() + 60
        while not (run_dir / "checkpoints/last.ckpt").exists():
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        job.terminate()
        printed, said = job.communicate(timeout=30)
    assert requeued(folder) == ["requeue 7"], printed + said
    assert job.returncode == 0
    assert "test/acc" not in printed

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with submitted(folder, *options) as job:
        printed, said = job.communicate(timeout=90)
    assert job.returncode == 0, said
    assert "goes on     from logs/train/runs/slurm-7/checkpoints/last.ckpt" in printed
    assert [path.name for path in run_dir.parent.iterdir()] == ["slurm-7"]
    assert figures(run_dir, "val/loss") == list(range(12))
    assert requeued(folder) == ["requeue 7"]


def test_mistyped_option_ends_the_job(folder: Path) -> None:
    with submitted(folder, "trainer.max_epoch=1") as job:
        said = job.communicate(timeout=60)[1]
    assert job.returncode != 0
    assert said.count("error: ") == 1
    assert not requeued(folder)


@pytest.mark.parametrize(
    ("why", "told", "exit_code", "is_requeued"),
    [
        ("time is over", {"SIGNALLED": "yes"}, 143, True),
        ("time is over", {"SIGNALLED": "yes", "SLURM_RESTART_COUNT": "19"}, 143, True),
        ("time is over too often", {"SIGNALLED": "yes", "SLURM_RESTART_COUNT": "20"}, 143, False),
        ("finished just in time", {"SIGNALLED": "yes"}, 0, False),
        ("another job takes the machines", {"PREEMPTED": "2026-11-23T10:30:00"}, 143, True),
        ("scancel", {"SIGNALLED": "yes", "STATE": "COMPLETING"}, 143, False),
        ("an error, and srun ended the others", {}, 143, False),
        ("an error", {}, 1, False),
        ("finished", {}, 0, False),
    ],
)
def test_job_is_requeued_when_it_could_go_on(
    folder: Path, why: str, told: dict[str, str], exit_code: int, is_requeued: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_command(folder / "bin/srun", ENDED)
    for name, value in (told | {"CODE": str(exit_code)}).items():
        monkeypatch.setenv(name, value)
    with submitted(folder) as job:
        job.communicate(timeout=10)
    assert requeued(folder) == ["requeue 7"] * is_requeued, why
    assert job.returncode == (0 if is_requeued else exit_code)


def test_batch_script_asks_for_a_process_a_gpu_and_for_sigterm() -> None:
    lines = (DEPLOY / "slurm.sh").read_text(encoding="utf-8").splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"].startswith("B:TERM@")
    assert {"requeue", "open-mode"} <= asked.keys()
{% endif %}
{% if cookiecutter.cluster == "kubernetes" %}
@pytest.fixture
def claim_and_job() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "trainjob.yaml").read_text(encoding="utf-8")))


def test_job_on_two_machines_leaves_one_run(claim_and_job: list[dict[str, Any]], tmp_path: Path) -> None:
    """A pod is a torchrun of its own; the variables are those that the runtime torch-distributed sets."""
    trainer = claim_and_job[1]["spec"]["trainer"]
    arguments = [*trainer["command"], *trainer["args"], "trainer=cpu", "trainer.max_epochs=1"]
    arguments = [str(tmp_path).join(argument.split("/runs")) for argument in arguments]
    names = ("NNODES", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT")
    values = (trainer["numNodes"], 1, "127.0.0.1", free_port())
    runtime = {f"PET_{name}": str(value) for name, value in zip(names, values, strict=True)}
    named = {variable["name"]: variable["value"] for variable in trainer["env"]}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    pods = [
        subprocess.Popen(
            arguments,
            cwd=tmp_path,
            env={**os.environ, **runtime, **named, "PET_NODE_RANK": str(rank), "PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [pod.communicate(timeout=90)[0] for pod in pods]
    finally:
        for pod in pods:
            end(pod)
    assert [pod.returncode for pod in pods] == [0, 0], printed
    assert "".join(printed).count("batch 64 = 2 devices x 32") == 1
    (run_dir,) = (tmp_path / "train/runs").iterdir()
    assert run_dir.name == named["TRAIN_RUN_NAME"]
    assert {"train.log", "metrics.json", "checkpoints"} <= {path.name for path in run_dir.iterdir()}


def test_runs_lie_on_the_claim_and_each_gpu_has_a_process(claim_and_job: list[dict[str, Any]]) -> None:
    claim, job = claim_and_job
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == ["torchrun", "-m", package.__name__, "train"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert f"paths.log_dir={mounts['runs']}" in trainer["args"]
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
{% endif %}
{% endif %}
