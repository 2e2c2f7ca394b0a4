"""Options are checked before anything is built, and refused in one sentence."""

from dataclasses import asdict, dataclass
from pathlib import Path

import lightning.pytorch as pl
import pytest
from digits import train_options
from hydra.errors import InstantiationException
from plain import FSDP
from torch import nn

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine import rendezvous as ranks
from {{ cookiecutter.package_name }}.engine.config.habits import elsewhere, with_habits
from {{ cookiecutter.package_name }}.engine.config.hydra_versions import instantiate
from {{ cookiecutter.package_name }}.engine.config.validation import build, check, read_options
from {{ cookiecutter.package_name }}.engine.distributed.devices import Devices, resolve_devices
from {{ cookiecutter.package_name }}.engine.distributed.fully_sharded import FullyShardedStrategy, parts_to_shard
from {{ cookiecutter.package_name }}.engine.distributed.plan import trainer_section
from {{ cookiecutter.package_name }}.engine.distributed.strategies import OneDeviceStrategy, build_strategy, strategy_options
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.training.build import build_loggers
from {{ cookiecutter.package_name }}.engine.training.options import TrainOptions as Options

DATA = f"{package.__name__}.{{ "engine.data.table.TableDataModule" if cookiecutter.data_kind == "tables" else "data.digits.DigitsDataModule" }}"
TRAINER = "lightning.pytorch.Trainer"
TRAIN = asdict(train_options())


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"_target_": DATA, "batchsize": 4}, r"'it.batchsize' is no option; did you mean 'it.batch_size'\?"),
        ({"_target_": DATA, "batch_size": "abc"}, "it.batch_size=abc does not fit: it takes a whole number."),
        ({"_target_": DATA, "batch_size": 1.5}, "it takes a whole number"),
        ({"_target_": DATA, "batch_size": True}, "it takes a whole number"),
        ({"_target_": DATA, "val_fraction": "a"}, "it takes a number"),
        ({"_target_": TRAINER, "precision": 17}, "it.precision=17 does not fit: .*bf16-mixed"),
        ({"_target_": TRAINER, "max_epochs": "abc"}, "it takes a whole number or null"),
        ({"_target_": "no.such.thing"}, "it._target_=no.such.thing cannot be imported"),
        ({"inner": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": "x"}}, "it.inner.lr=x does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(section: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check(section, "it")


def test_what_fits_passes() -> None:
    check({"_target_": DATA, "batch_size": 4, "val_fraction": 0.25, "pin_memory": True}, "it")
    check(
        {
            "_target_": TRAINER,
            "precision": "bf16-mixed",
            "devices": [0, 1],
            "max_epochs": None,
            "limit_val_batches": 0.5,
        },
        "it",
    )
    assert build({"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2}, "it").in_features == 4


def test_mistake_in_a_constructor_names_the_line() -> None:
    section = {"_target_": "torch.nn.GroupNorm", "num_groups": 3, "num_channels": 4}
    with pytest.raises(UserError, match=r"it cannot be built: .*divisible by num_groups.* \(normalization.py:\d+\)"):
        build(section, "it")


def test_plain_sections_are_checked_against_their_dataclass() -> None:
    good = {**TRAIN, "tags": ["a"]}
    assert read_options(good, Options) == Options(**good)
    for wrong in (
        {"seed": "abc"},
        {"seed": -1},
        {"tags": "a"},
        {"test": "yes"},
        {"ckpt_path": 3},
        {"lr_scaling": "cubic"},
        {"base_batch_size": 0},
        {"weights": 3},
        {"pretrained_lr_factor": 2},
        {"freeze": 3},
        {"warmup_steps": -1},
        {"compile": "max-autotune"},
        {"channels_last": 1},
        {"rehearse_export": True},
        {"rehearse_export": "refuse"},
    ):
        (name,) = wrong
        with pytest.raises(UserError, match=f"^{name}="):
            read_options(good | wrong, Options)


def test_options_of_ones_own_may_be_any_dataclass() -> None:
    @dataclass(frozen=True)
    class Own:
        rate: float

    assert read_options({"rate": 1}, Own) == Own(rate=1)


def test_logger_that_is_not_installed_names_the_command(tmp_path: Path) -> None:
    section = {"missing": {"_target_": f"{__name__}.NotInstalled"}}
    sentence = r"logger=missing is not installed: run 'pip install -c constraints.txt missing'"
    with pytest.raises(UserError, match=sentence):
        build_loggers(section, tmp_path)


def test_options_of_a_logger_that_is_not_chosen_are_left_alone_and_other_sections_name_a_class(tmp_path: Path) -> None:
    assert build_loggers({"wandb": {"tags": ["baseline"]}, "csv": None}, tmp_path) == []
    with pytest.raises(UserError, match=r"callbacks.mine names no class: give it a _target_, or leave it out"):
        build({"patience": 3}, "callbacks.mine")


@pytest.mark.parametrize(
    ("target", "argument"), [("os.system", "command"), ("shutil.rmtree", "path"), ("builtins.eval", "source")]
)
def test_target_that_no_option_may_name_is_refused(target: str, argument: str, tmp_path: Path) -> None:
    """By every Hydra that a project takes."""
    kept = tmp_path / "kept"
    kept.mkdir()
    with pytest.raises(InstantiationException):
        instantiate({"_target_": target, argument: str(kept)})
    assert kept.is_dir()


class NotInstalled:
    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'missing'")


@pytest.mark.parametrize(
    ("strategy", "requested", "expected"),
    [("single", None, 1), ("single", 1, 1), ("dp", None, 1), ("ddp", None, 1), ("ddp", 2, 2), ("ddp", "3", 3)],
)
def test_devices_on_the_cpu_are_processes(strategy: str, requested: object, expected: int) -> None:
    assert resolve_devices("cpu", requested, strategy) == Devices("cpu", tuple(range(expected)))


@pytest.mark.parametrize(
    ("strategy", "requested", "sentence"),
    [
        ("single", 2, "strategy=single uses one device"),
        ("dp", 2, "take strategy=ddp"),
        ("ddp", 0, "trainer.devices=0 names no set of devices"),
        ("ddp", [0, 1], "numbers GPUs"),
        ("ddp", "many", "trainer.devices=many is no whole number"),
    ],
)
def test_impossible_devices_are_refused(strategy: str, requested: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve_devices("cpu", requested, strategy)


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of GPUs is a stand-in; what is shown is the rule."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_devices("auto", None, "ddp") == Devices("gpu", (0, 1))
    assert resolve_devices("gpu", [1], "single") == Devices("gpu", (1,))
    with pytest.raises(UserError, match=r"trainer.devices=4 asks for more than this machine has \(2 gpu\)"):
        resolve_devices("gpu", 4, "ddp")
    with pytest.raises(UserError, match="names no set"):
        resolve_devices("gpu", [0, 0], "ddp")


def started_by_torchrun(monkeypatch: pytest.MonkeyPatch, world_size: int, per_node: int) -> None:
    places = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(per_node)}
    for name, value in places.items():
        monkeypatch.setenv(name, value)


def test_torchrun_says_how_many_devices_and_nodes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    started_by_torchrun(monkeypatch, world_size=4, per_node=2)
    assert resolve_devices("cpu", None, "ddp") == Devices("cpu", (0, 1), num_nodes=2)
    assert resolve_devices("cpu", 2, "ddp", num_nodes=2).num_devices == 4


@pytest.mark.parametrize(
    ("strategy", "devices", "num_nodes", "sentence"),
    [
        ("single", None, None, "strategy=single is one process, but torchrun started 4: take strategy=ddp"),
        ("dp", None, None, "strategy=dp is one process, but torchrun started 4"),
        ("ddp", 3, None, "trainer.devices=3, but torchrun started 2 processes on each machine: leave"),
        ("ddp", None, 3, "trainer.num_nodes=3, but torchrun started processes on 2: leave"),
    ],
)
def test_option_that_contradicts_torchrun_is_refused(
    strategy: str, devices: int | None, num_nodes: int | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_by_torchrun(monkeypatch, world_size=4, per_node=2)
    with pytest.raises(UserError, match=sentence):
        resolve_devices("cpu", devices, strategy, num_nodes)


def test_restarts_of_torchrun_on_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started_by_torchrun(monkeypatch, world_size=4, per_node=2)
    ranks.refuse_restarts_that_hang()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(UserError, match="on several machines does not count alike"):
        ranks.refuse_restarts_that_hang()


def test_each_step_of_a_slurm_job_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": 7, "PROCID": 0, "NTASKS": 2, "NNODES": 1, "STEP_ID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert ranks.job_name() == "slurm-7"
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert ranks.job_name() == "slurm-7.1"
    monkeypatch.setenv("TRAIN_RUN_NAME", "mine")
    assert ranks.job_name() == "mine"


def test_several_nodes_need_someone_to_start_them() -> None:
    with pytest.raises(UserError, match=r"trainer.num_nodes=2 needs a process on each machine: .*torchrun --nnodes 2"):
        resolve_devices("cpu", 1, "ddp", num_nodes=2)


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_learning_rate_grows_with_the_batch_by_its_rule(rule: str, factor: float) -> None:
    assert read_options({**TRAIN, "lr_scaling": rule}, Options).lr_factor(256) == factor


def test_fsdp_is_built_for_several_devices_and_plain_for_one() -> None:
    section = {**FSDP, "min_num_weights": 1000}
    assert isinstance(build_strategy(strategy_options(section), Devices("gpu", (0, 1))), FullyShardedStrategy)
    assert isinstance(build_strategy(strategy_options(section), Devices("cpu", (0,))), OneDeviceStrategy)
    sentence = r"'strategy.min_weights' is no option; did you mean 'strategy.min_num_weights'"
    with pytest.raises(UserError, match=sentence):
        strategy_options(section | {"min_weights": 1})


def test_parts_that_fsdp_shards_on_their_own_can_be_called_and_share_no_weights() -> None:
    class Tied(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.word = nn.Embedding(50, 16)
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32) for _ in range(2))
            self.norm, self.wide = nn.BatchNorm1d(400), nn.Sequential(nn.Linear(16, 40), nn.Linear(40, 16))
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.word.weight

    module = Tied()
    first, second = module.blocks
    assert parts_to_shard(module, 300, None) == [first, second, module.wide[0], module.wide[1]]
    assert parts_to_shard(module, 1000, None) == [first, second, module.wide]
    assert parts_to_shard(module, 10**6, None) == []
    assert parts_to_shard(module, 1, ["TransformerEncoderLayer", "Linear"])[-1] is module.wide[1]
    with pytest.raises(UserError, match=r"names Liner, and the model has none that can be .*; did you mean 'Linear'"):
        parts_to_shard(module, 1, ["Liner"])
    with pytest.raises(UserError, match=r"names MultiheadAttention, and the model has none that can be sharded on its"):
        parts_to_shard(module, 1, ["MultiheadAttention"])


@pytest.mark.parametrize(
    "name", ["limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run"]
)
def test_what_counts_batches_counts_whole_ones(name: str) -> None:
    config = {"trainer": {name: 3}, "data": {}}
    assert trainer_section(config, Devices("cpu", (0,)), num_steps=4)[name] == 12
    whole = {"trainer": {name: 1.0}, "data": {}}
    assert trainer_section(whole, Devices("cpu", (0,)), num_steps=4)[name] == 1.0


def test_every_argument_of_the_trainer_is_an_option_and_a_plus_changes_no_choice() -> None:
    typed = ["trainer.min_epochs=2", "trainer.max_epochs=3", "trainer.accumulate_grad_batches=2", "trainer.max_epoch=1"]
    assert with_habits(typed, "train") == ["++trainer.min_epochs=2", *typed[1:]]
    assert with_habits(["+experiment=example", "+model.x=1"], "train") == ["experiment=example", "+model.x=1"]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["++sed=3"], "'sed' is no option; did you mean 'seed'?"),
        (["--batch-size=8"], "options have no dashes: did you mean 'data.batch_size=8'?"),
        (["--trainer.max_epochs=1"], "options have no dashes: did you mean 'trainer.max_epochs=1'?"),
        (["--gpus", "2"], "options have no dashes: did you mean 'trainer.devices=2'?"),
        (["--fast_dev_run", "model=mlp"], "options have no dashes: did you mean 'trainer.fast_dev_run='?"),
    ],
)
def test_option_of_another_tool_is_explained(typed: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        with_habits(typed, "train")
    assert str(refused.value).endswith(sentence)


def test_flags_of_hydra_are_left_alone() -> None:
    typed = ["--cfg", "job", "--config-dir=mine", "-m", "seed=1,2"]
    assert with_habits(typed, "train") == typed
    assert [elsewhere(word) for word in ("gpus", "max_epochs", "seed")] == [
        "did you mean 'trainer.devices='?",
        "did you mean 'trainer.max_epochs='?",
        None,
    ]
