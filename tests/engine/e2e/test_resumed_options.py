"""A training that goes on follows the options that it is given: each is applied or refused by name, and recorded."""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import run_command, weights
from hydra.utils import get_object
from integration.test_configs import composed

from digit_classifier.engine.distributed.plan import make_plan
from digit_classifier.engine.errors import UserError
from digit_classifier.engine.workflows.training import Training

RUN = (
    "model=mlp",
    "trainer=cpu",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.enable_progress_bar=false",
    "rehearse_export=false",
)
# Where a run lies and what it goes on from; a run is not continued on other devices here, nor with another network.
NOT_DRAWN = (
    *("paths.", "resume", "ckpt_path", "weights", "task_name", "experiment", "debug", "logger", "options"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.profiler", "strategy.name"),
    *("trainer.max_steps", "trainer.fast_dev_run", "trainer.overfit_batches", "model.net.", "freeze", "compile"),
    *("callbacks.best.dirpath", "callbacks.best.filename", "callbacks.last.dirpath", "callbacks.learning_rate."),
)
CHOICES: dict[str, object] = {
    "trainer.precision": "64-true",
    "trainer.gradient_clip_val": 1.0,
    "trainer.limit_test_batches": 2,
    "data.micro_batch_size": 32,
    "data.pin_memory": False,
    "data.seed": 5,
    "data.test_fraction": 0.3,
    "data.val_fraction": 0.2,
    "lr_scaling": "linear",
    "pretrained_lr_factor": 0.5,
    "ema_decay": 0.9,
    "rehearse_export": "warn",
    "tags": ["other"],
    "model.class_weights": "balanced",
    "callbacks.last.every_n_steps": 2,
    "callbacks.last.every_n_minutes": 1,
    "callbacks.best.monitor": "val/acc",
    "callbacks.early_stopping.monitor": "val/acc",
    "callbacks.best.mode": "max",
    "callbacks.early_stopping.mode": "max",
}


def go_on(folder: Path, *options: str, ckpt_path: Path | None = None) -> Training:
    """Trains up to the second epoch, from the checkpoint if one is given."""
    start = (f"ckpt_path={ckpt_path}", "trainer.max_epochs=2") if ckpt_path else ("trainer.max_epochs=1",)
    folder.mkdir(exist_ok=True)
    config = composed("train", folder, *RUN, *start, *options)
    training = Training.build(config, make_plan(config))
    with training.recorded():
        training.trainer.fit(
            training.model, datamodule=training.datamodule, ckpt_path=training.ckpt_path, weights_only=True
        )
    return training


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    go_on(folder / "run")
    return folder / "run/checkpoints/last.ckpt"


def group(training: Training) -> dict[str, Any]:
    found: dict[str, Any] = training.trainer.optimizers[0].param_groups[0]
    return found


def test_rates_and_decay_go_on_with_their_new_values(begun: Path, tmp_path: Path) -> None:
    """The learning rate is the new one after as many epochs of its schedule."""
    assert group(go_on(tmp_path / "same", ckpt_path=begun))["lr"] == pytest.approx(0.002 * 0.9**2)
    options = ("model.optimizer.lr=1e-4", "model.optimizer.weight_decay=0.3", "model.scheduler.gamma=0.5")
    changed = go_on(tmp_path / "changed", *options, ckpt_path=begun)
    assert group(changed)["lr"] == pytest.approx(1e-4 * 0.9 * 0.5)
    assert group(changed)["weight_decay"] == 0.3
    scaled = go_on(tmp_path / "scaled", "lr_scaling=linear", "base_batch_size=32", ckpt_path=begun)
    assert group(scaled)["lr"] == pytest.approx(2 * 0.002 * 0.9**2)
    assert all(not torch.equal(weight, weights(tmp_path / "same")[name]) for name, weight in
               weights(tmp_path / "changed").items() if name.endswith("weight"))  # fmt: skip


def test_warm_up_goes_on_as_it_was(tmp_path: Path) -> None:
    """Three of its four steps are in the first epoch; another weight decay leaves the learning rate alone."""
    go_on(tmp_path / "first", "warmup_steps=4")
    checkpoint = tmp_path / "first/checkpoints/last.ckpt"
    same = go_on(tmp_path / "same", "warmup_steps=4", ckpt_path=checkpoint)
    options = ("warmup_steps=4", "model.optimizer.weight_decay=0.3")
    assert group(go_on(tmp_path / "other", *options, ckpt_path=checkpoint))["lr"] == group(same)["lr"]
    assert group(same)["lr"] == pytest.approx(0.002 * 0.9**2)
    with pytest.raises(UserError, match="warmup_steps=0 is for the start of a training, and this one goes on"):
        go_on(tmp_path / "none", ckpt_path=checkpoint)


def test_other_split_is_refused(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data.split_seed=7 would move samples from the test to the training of a model"
    ):
        go_on(tmp_path, "data.split_seed=7", ckpt_path=begun)


SCHEDULE = ("~model.scheduler.gamma", "model.scheduler._target_=torch.optim.lr_scheduler.")


@pytest.mark.parametrize(
    ("schedule", "options", "outcome"),
    [
        (("CosineAnnealingLR", "+model.scheduler.T_max=1"), (), "beyond CosineAnnealingLR, whose rate rises again"),
        (("CosineAnnealingLR", "+model.scheduler.T_max=1"), ("+model.scheduler.T_max=3",), 0.0005),
        (("PolynomialLR", "+model.scheduler.total_iters=1"), (), "goes beyond PolynomialLR, whose rate stays at 0"),
        (
            ("OneCycleLR", "+model.scheduler.max_lr=0.01", "+model.scheduler.total_steps=2"),
            ("model.optimizer.lr=0.1",),
            "model.optimizer.lr cannot change in a training that goes on with AdamW, OneCycleLR",
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'")
def test_schedule_that_ends_is_made_longer_or_refused(
    schedule: tuple[str, ...], options: tuple[str, ...], outcome: str | float, tmp_path: Path
) -> None:
    """The rate of a cosine, which had come to 0, is that of the longer one after two of its three steps."""
    kind, *rest = schedule
    planned = [SCHEDULE[0], SCHEDULE[1] + kind, *rest]
    go_on(tmp_path / "first", *planned)
    named = {option.split("=")[0] for option in options}
    given = [*(option for option in planned if option.split("=")[0] not in named), *options]
    checkpoint = tmp_path / "first/checkpoints/last.ckpt"
    if isinstance(outcome, float):
        assert group(go_on(tmp_path / "second", *given, ckpt_path=checkpoint))["lr"] == pytest.approx(outcome)
    else:
        with pytest.raises(UserError, match=outcome):
            go_on(tmp_path / "second", *given, ckpt_path=checkpoint)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_average_of_the_weights_goes_on_starts_and_ends(tmp_path: Path) -> None:
    """Without it the training returns to the weights, from which the average was made."""
    go_on(tmp_path / "plain", "trainer.max_epochs=2")
    go_on(tmp_path / "half")
    go_on(tmp_path / "averaged", "ema_decay=0.5")
    averaged = tmp_path / "averaged/checkpoints/last.ckpt"
    saved = torch.load(averaged, weights_only=True)
    assert_same(saved["trained_weights"], weights(tmp_path / "half"))
    layer = "net.1.layers.1.weight"
    assert not torch.equal(saved["state_dict"][layer], saved["trained_weights"][layer])
    go_on(tmp_path / "returned", ckpt_path=averaged)
    assert_same(weights(tmp_path / "returned"), weights(tmp_path / "plain"))


def test_run_from_the_checkpoint_of_another_has_a_best_one_of_its_own(begun: Path, tmp_path: Path) -> None:
    training = go_on(tmp_path, "trainer.limit_val_batches=0", ckpt_path=begun)
    assert training.best_checkpoint == str(tmp_path / "checkpoints/best.ckpt")


def leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{name}.")
        elif not name.startswith("_"):
            yield f"{path}{name}", value


def other(path: str, value: Any) -> Any:
    """Another value of the same kind."""
    if path in CHOICES:
        return CHOICES[path]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2


def in_effect(training: Training, path: str) -> Any:
    """The value of an option as the run has it, in the object that uses it if that says so."""
    section, _, name = path.rpartition(".")
    found: Any = training.options if not section else None
    if section == "trainer":
        found = training.trainer
    elif section == "data":
        found = training.datamodule
    elif section == "model.optimizer":
        return group(training)["initial_lr" if name == "lr" else name]
    elif section == "model.scheduler":
        found = training.trainer.lr_scheduler_configs[0].scheduler
    elif section.startswith("callbacks."):
        kind = get_object(training.config["callbacks"][section.split(".")[1]]["_target_"])
        found = next(callback for callback in training.trainer.callbacks if type(callback) is kind)  # type: ignore[attr-defined]
    if hasattr(found, name):
        return getattr(found, name)
    value: Any = training.config
    for part in path.split("."):
        value = value[part]
    return value


def drawn(share: int) -> list[tuple[str, Any]]:
    config = composed("train", Path("unused"), *RUN)
    options = [(path, value) for path, value in leaves(config) if not path.startswith(NOT_DRAWN)]
    return random.Random(1).sample(options, len(options) // share)


def assert_none_is_ignored(options: list[tuple[str, Any]], begun: Path, folder: Path) -> None:
    refused = {}
    for number, (path, value) in enumerate(options):
        now = other(path, value)
        given = json.dumps(now).replace('"', "")
        try:
            training = go_on(folder / str(number), f"{path}={given}", ckpt_path=begun)
        except UserError as refusal:
            refused[path] = str(refusal)
            assert path in refused[path] or path.split(".")[-1] in refused[path], refused[path]
            continue
        assert in_effect(training, path) == now, path
    print(f"{len(options)} options, {len(refused)} refused: {', '.join(refused)}")
    assert len(refused) < len(options) / 3


def test_no_option_of_some_is_ignored(begun: Path, tmp_path: Path) -> None:
    assert_none_is_ignored(drawn(5), begun, tmp_path)


@pytest.mark.slow
def test_no_option_is_ignored(begun: Path, tmp_path: Path) -> None:
    assert_none_is_ignored(drawn(1), begun, tmp_path)


def test_record_of_a_run_says_what_was_in_effect(tmp_path: Path) -> None:
    """Also of an option that was added with `+`; what was refused is nowhere."""
    options = ("model=mlp", "trainer=cpu", "trainer.max_epochs=1", "+trainer.limit_predict_batches=2")
    run_command("train", *options, cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    before = {path.name: path.read_bytes() for path in (run_dir / "run.json", *run_dir.glob(".hydra/*"))}
    for refused, sentence in {
        "warmup_steps=7": "warmup_steps=7 is for the start of a training, and this one goes on: leave it at 0",
        "weights=some.ckpt": "weights=some.ckpt is for the start of a run, and resume=latest goes on with one",
        "model.optimizer._target_=torch.optim.SGD": "model.optimizer",
    }.items():
        tried = run_command("train", "resume=latest", "trainer.max_epochs=2", refused, cwd=tmp_path, check=False)
        assert (tried.returncode, sentence in tried.stderr) == (2, True), tried.stderr
        assert {path.name: path.read_bytes() for path in (run_dir / "run.json", *run_dir.glob(".hydra/*"))} == before
    now = ("trainer.max_epochs=2", "model.optimizer.lr=1e-4", "trainer.limit_predict_batches=3")
    run_command("train", "resume=latest", *now, cwd=tmp_path)
    expected = ["rehearse_export=false", "model=mlp", "trainer=cpu", *now[:2], f"++{now[2]}"]
    assert sorted(json.loads((run_dir / "run.json").read_text())["options"]) == sorted(expected)
    assert sorted(yaml.safe_load((run_dir / ".hydra/overrides.yaml").read_text())) == sorted(expected)
    config = yaml.safe_load((run_dir / ".hydra/config.yaml").read_text())
    assert (config["model"]["optimizer"]["lr"], config["trainer"]["limit_predict_batches"]) == (1e-4, 3)
    assert "- `model.optimizer.lr=1e-4`" in (run_dir / "report.md").read_text()
    saved = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4 * 0.9**2)
