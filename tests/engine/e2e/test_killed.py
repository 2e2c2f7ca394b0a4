"""Runs that are ended from outside, at any moment, come to the same end to the bit."""

import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TWO_PROCESSES, curves, run_command, started, trained, weights

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.training.callbacks.last_checkpoint import LastCheckpoint
from {{ cookiecutter.package_name }}.engine.training.checkpoint_io import is_damaged

# Dropout and momentum: all that is random or goes on must come back.
RUN = ("trainer=cpu", "model=mlp", "trainer.max_epochs=8", "data.batch_size=32", "callbacks.last.every_n_steps=5")
STRATEGIES = {
    "single": (),
    "ddp": TWO_PROCESSES,
    "fsdp": ("strategy=fsdp", "trainer.devices=2", "strategy.min_num_weights=2000"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run directory of a strategy, trained when it is first asked for."""
    return cache(lambda strategy: trained(tmp_path_factory.mktemp(strategy), *RUN, *STRATEGIES[strategy]))


@pytest.fixture(autouse=True)
def importable_killer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the other commands have: sums depend on it


def assert_same_end(run_dir: Path, expected: Path) -> None:
    for name, weight in weights(expected).items():
        assert weight.equal(weights(run_dir)[name]), name
    found = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
    assert found == {str(path.relative_to(expected)) for path in expected.rglob("*")}


def killed_and_gone_on(
    strategy: str, num_kills: int, seed: int, expected: Path, folder: Path
) -> tuple[Path, Counter[str]]:
    """A run that is killed again and again, and then comes to its end; and at what it was killed."""
    chance, notes = random.Random(seed), folder / "notes"
    num_steps = torch.load(expected / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    for number, step in enumerate(sorted(chance.sample(range(1, num_steps - 40), num_kills))):
        options = ["resume=latest"] if number else [*RUN, *STRATEGIES[strategy]]
        rank = 0 if strategy == "single" else chance.randrange(2)
        options += killer(step=step, delay=chance.uniform(0, 0.1), rank=rank, notes=notes)
        process = run_command("train", *options, cwd=folder, check=False)
        assert process.returncode in (137, -signal.SIGKILL), process.stdout + process.stderr
    run_command("train", "resume=latest", "callbacks.killer=null", cwd=folder)
    (run_dir,) = (folder / "logs/train/runs").iterdir()
    return run_dir, Counter(notes.read_text(encoding="utf-8").split())


def test_run_that_is_killed_comes_to_the_same_end(undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    run_dir, _ = killed_and_gone_on("single", 2, 1, undisturbed("single"), tmp_path)
    assert_same_end(run_dir, undisturbed("single"))
    assert curves(run_dir) == curves(undisturbed("single"))


def killer(**options: object) -> list[str]:
    return [f"+callbacks.killer.{name}={value}" for name, value in {"_target_": "killer.Killer", **options}.items()]


PLATEAU = (
    "model.scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
    "~model.scheduler.gamma",
    "+model.scheduler.patience=0",
    "+model.scheduler.threshold=0.3",
)


@pytest.mark.slow
def test_learning_rate_that_waits_for_a_plateau_goes_on_too(tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    expected.mkdir()
    undisturbed = trained(expected, *RUN, *PLATEAU)
    saved = torch.load(undisturbed / "checkpoints/last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] < 0.002, "there was no plateau"
    for number in range(4):
        options = ["resume=latest"] if number else [*RUN, *PLATEAU]
        kill = killer(step=50 * number + 30, delay=0.02, rank=0, notes=tmp_path / "notes")
        assert run_command("train", *options, *kill, cwd=tmp_path, check=False).returncode == -signal.SIGKILL
    run_command("train", "resume=latest", "callbacks.killer=null", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert_same_end(run_dir, undisturbed)


@pytest.mark.slow
def test_run_that_stopped_early_and_was_killed_in_its_test_does_not_train_on(tmp_path: Path) -> None:
    """And has the figures of its training, though nothing is left to train."""
    options = (*RUN, "callbacks.early_stopping.patience=1", "model.optimizer.lr=0.2", "trainer.max_epochs=50")
    kill = killer(rank=0, notes=tmp_path / "notes", in_test=True)
    killed = run_command("train", *options, *kill, cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    before = weights(run_dir)
    going_on = run_command("train", "resume=latest", "callbacks.killer=null", cwd=tmp_path)
    assert not re.search(r"^epoch ", going_on.stdout, re.MULTILINE)
    assert all(weight.equal(before[name]) for name, weight in weights(run_dir).items())
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    assert {"train/loss", "val/loss", "test/loss"} <= metrics.keys()


@pytest.mark.slow
def test_run_that_was_killed_between_its_last_two_checkpoints_has_both(tmp_path: Path) -> None:
    kill = killer(rank=0, notes=tmp_path / "notes", in_test=True)
    run_command("train", *RUN[:2], "trainer.max_epochs=1", *kill, cwd=tmp_path, check=False)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    expected, last = weights(run_dir), run_dir / "checkpoints/last.ckpt"
    for name in ("last.ckpt", "last.ckpt.sha256"):
        last.with_name(name).rename(last.with_name(name.replace("last", "best")))
    run_command("train", "resume=latest", "callbacks.killer=null", cwd=tmp_path)
    assert all(weight.equal(expected[name]) for name, weight in weights(run_dir).items())
    assert not is_damaged(last)
    assert last.with_name("last.ckpt.sha256").exists()


def test_checkpoints_every_so_many_minutes(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, *RUN[:2], "trainer.max_epochs=1", "callbacks.last.every_n_minutes=0.0001")
    saved = [torch.load(run_dir / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "previous")]
    assert 0 < saved[1]["global_step"] < saved[0]["global_step"], "in the middle of the only epoch"
    for options in ({"every_n_minutes": 0}, {"every_n_steps": -1}):
        with pytest.raises(UserError, match=r"callbacks\.last\.every_n_\w+=\S+ is out of range"):
            LastCheckpoint(str(tmp_path), **options)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_run_that_is_killed_at_many_moments_comes_to_the_same_end(
    strategy: str, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """Five runs of four kills each, two under fsdp, which starts slowly: in steps, in validation and in saving."""
    at: Counter[str] = Counter()
    num_runs = 2 if strategy == "fsdp" else 5
    for seed in range(10, 10 + num_runs):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run_dir, moments = killed_and_gone_on(strategy, 4, seed, undisturbed(strategy), folder)
        assert_same_end(run_dir, undisturbed(strategy))
        at += moments
    print(f"{strategy}: killed at {dict(at)}")
    assert at.total() == 4 * num_runs


@pytest.mark.parametrize(
    ("strategy", "number", "exit_code"),
    [
        ("single", signal.SIGINT, 130),
        pytest.param("single", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("ddp", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("ddp", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_signal_saves_the_step_that_was_going_on(
    strategy: str, number: signal.Signals, exit_code: int, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """In the middle of an epoch; the ranks agree within half a second, so an epoch of theirs must take longer."""
    longer = ("data.batch_size=2", "trainer.max_epochs=2") if strategy == "ddp" else ()
    options = [option for option in RUN if "every_n_steps" not in option] + [*longer, *STRATEGIES[strategy]]
    signaller = {"_target_": "killer.Signaller", "number": int(number), "step": 45}
    typed = [*options, *(f"+callbacks.signaller.{name}={value}" for name, value in signaller.items())]
    with started("train", *typed, cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code, printed + errors
    sentence = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
    assert errors == f"error: {sentence}: what was saved until now stays.\n"
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    (step,) = re.findall(r"^saved       step (\d+) of epoch \d+$", printed, re.MULTILINE)
    saved = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == int(step)
    assert strategy == "ddp" or int(step) == 45
    (loader,) = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    num_batches = loader["num_samples"] // loader["batch_size"]
    assert 0 < loader["num_delivered"] < num_batches, "at the end of an epoch it would be saved in any case"
    assert f"{package.__name__} train resume=logs/train/runs/{run_dir.name}" in printed
    going_on = run_command("train", "resume=latest", "callbacks.signaller=null", cwd=tmp_path)
    assert "goes on     from" in going_on.stdout
    other = tmp_path / "other"
    other.mkdir()
    assert_same_end(run_dir, trained(other, *options) if longer else undisturbed(strategy))
