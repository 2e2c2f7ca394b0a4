"""The strategy changes the speed, never the result: every model in every way, in double precision, to 1e-10."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import MODELS

HERE = Path(__file__).parents[1]
LIMIT = 1e-10
MICRO = ("data.micro_batch_size=11",)
FSDP = ("strategy=fsdp", "strategy.min_num_weights=300")
MEMORY = ("strategy.activation_checkpointing=true", "strategy.cpu_offload=true")
KILLED = ("callbacks.last.every_n_steps=1", "+callbacks.killer._target_=killer.Killer", "+callbacks.killer.rank=0")
BORDER = ("trainer.max_epochs=1",)

# How the processes of a stage are started, their number, and the options; a second stage goes on from the first.
Stage = tuple[str, int, tuple[str, ...]]
SINGLE: Stage = ("alone", 1, ())
WAYS: dict[str, list[Stage]] = {
    "micro": [("alone", 1, MICRO)],
    "ddp 2": [("launch", 2, ("strategy=ddp",))],
    "ddp 3": [("launch", 3, ("strategy=ddp",))],
    "ddp 2 micro": [("launch", 2, ("strategy=ddp", *MICRO))],
    "fsdp 2": [("launch", 2, FSDP)],
    "fsdp 3": [("launch", 3, FSDP)],
    "fsdp 2 micro": [("launch", 2, (*FSDP, *MICRO))],
    "fsdp 2 memory": [("launch", 2, (*FSDP, *MEMORY))],
    "torchrun 2": [("torchrun", 2, ("strategy=ddp",))],
    "killed": [("killed", 1, KILLED), SINGLE],
    "fsdp 2, then single": [("launch", 2, (*FSDP, *BORDER)), SINGLE],
    "ddp 3, then fsdp 2": [("launch", 3, ("strategy=ddp", *BORDER)), ("launch", 2, FSDP)],
    "single, then fsdp 3": [("alone", 1, BORDER), ("launch", 3, FSDP)],
}
# BatchNorm takes its statistics from each micro-batch alone, which the run says and the documentation too.
DIFFERS = {("batch_norm", way) for way in WAYS if "micro" in way}
# Each model once, in two starts of processes; `-m slow` trains all of them in every way.
SOME = [
    ("cnn", "fsdp 2 memory"),
    ("mlp", "ddp 2"),
    ("transformer", "fsdp 2"),
    ("batch_norm", "fsdp 2"),
    ("unet", "ddp 2 micro"),
    ("text", "fsdp 2 micro"),
    ("text", "micro"),
    ("class_weights", "ddp 2"),
    ("ema", "fsdp 2"),
]

Cell = tuple[str, str]


def train(folder: Path, cells: Sequence[Cell]) -> None:
    """Trains each cell, and each of its models by `single`; one start of processes for all cells that it can take."""
    stages = {(model, way): WAYS[way] for model, way in cells} | {(model, "single"): [SINGLE] for model, _ in cells}
    for number in range(2):
        groups: dict[tuple[str, int], list[Any]] = {}
        for (model, way), planned in stages.items():
            if number >= len(planned):
                continue
            start, num_processes, options = planned[number]
            given = [*options, *([f"trainer.devices={num_processes}"] if num_processes > 1 else [])]
            if number:
                given.append(f"ckpt_path={folder / model / (slug(way) + '-1')}/checkpoints/last.ckpt")
            if start == "killed":
                given += [f"+callbacks.killer.notes={folder / 'notes'}", "+callbacks.killer.step=3"]
            name = slug(way) + ("" if number + 1 == len(planned) else "-1")
            groups.setdefault((start, num_processes), []).append([model, name, given])
        for (start, num_processes), runs in groups.items():
            for some in [[each] for each in runs] if start == "killed" else [runs]:
                start_processes(folder, start, num_processes, some)


def slug(way: str) -> str:
    return way.replace(",", "").replace(" ", "-")


def start_processes(folder: Path, start: str, num_processes: int, runs: list[Any]) -> None:
    command = [sys.executable]
    if start == "torchrun":
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command += [str(HERE / "matrix.py"), str(folder), json.dumps(runs)]
    if start == "launch":
        command.append("--launch")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    ended = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == (-signal.SIGKILL if start == "killed" else 0), (
        ended.stdout[-3000:] + ended.stderr[-5000:]
    )


def difference(found: Path, expected: Path) -> float:
    """The largest one of the weights, the state of the optimizer and the figures of the last epoch and the test."""
    ours, theirs = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (found, expected))
    assert ours["global_step"] == theirs["global_step"]
    assert list(ours["state_dict"]) == list(theirs["state_dict"])
    pairs = [(ours["state_dict"][name], weight) for name, weight in theirs["state_dict"].items()]
    trained = [checkpoint.get("trained_weights", {}) for checkpoint in (ours, theirs)]  # under an average of them
    assert trained[0].keys() == trained[1].keys()
    pairs += [(trained[0][name], weight) for name, weight in trained[1].items()]
    for our, their in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert our["state"].keys() == their["state"].keys()
        for number, state in their["state"].items():
            pairs += [(our["state"][number][name], value) for name, value in state.items()]
    our_figures, their_figures = (json.loads((run / "metrics.json").read_text()) for run in (found, expected))
    names = {name for name in their_figures if not name.startswith("time/")}
    assert names == {name for name in our_figures if not name.startswith("time/")}
    pairs += [(torch.tensor(our_figures[name]), torch.tensor(their_figures[name])) for name in names]
    return max((our.double() - their.double()).abs().max().item() for our, their in pairs)


def compared(folder: Path, cells: Sequence[Cell]) -> None:
    train(folder, cells)
    found = {(model, way): difference(folder / model / slug(way), folder / model / "single") for model, way in cells}
    for (model, way), value in found.items():
        print(f"{model:14} {way:20} {value:.1e}")
    assert not {cell: value for cell, value in found.items() if (value > LIMIT) != (cell in DIFFERS)}


def test_some_models_end_alike_in_every_way(tmp_path: Path) -> None:
    assert {model for model, _ in SOME} == MODELS.keys()
    compared(tmp_path, SOME)


@pytest.mark.slow
def test_every_model_ends_alike_in_every_way(tmp_path: Path) -> None:
    compared(tmp_path, [(model, way) for model in MODELS for way in WAYS])
