"""The strategy changes the speed, never the result: real processes, double precision."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import EXACT, TWO_PROCESSES, assert_same_result, curves, run_command, torchrun, trained, weights
from safetensors.torch import save_file

import {{ cookiecutter.package_name }} as package


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("single"), *EXACT)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("ddp"), *EXACT, *TWO_PROCESSES)


def test_ddp_ends_with_the_weights_and_curves_of_single(single: Path, ddp: Path) -> None:
    assert_same_result(ddp, single)


def test_dp_ends_with_the_weights_and_curves_of_single(single: Path, tmp_path: Path) -> None:
    """On the CPU it is the identity; tests/unit/test_dp.py shows its replicas."""
    assert_same_result(trained(tmp_path, *EXACT, "strategy=dp"), single)


@pytest.mark.slow
def test_micro_batches_change_nothing(single: Path, tmp_path: Path) -> None:
    """The training split leaves a remainder of samples in each epoch."""
    assert_same_result(trained(tmp_path, *EXACT, *TWO_PROCESSES, "data.micro_batch_size=16"), single)


@pytest.mark.slow
def test_strategies_agree_with_micro_batches_{{ "and_clipping" if cookiecutter.data_kind == "tables" else "clipping_and_augmentation" }}(single: Path, tmp_path: Path) -> None:
    options = ("data.micro_batch_size=16", "trainer.gradient_clip_val=0.1"{{ ', "data.max_shift=1"' if cookiecutter.data_kind == "images" }})
    found = {}
    for name, strategy in (("single", ()), ("ddp", TWO_PROCESSES)):
        (tmp_path / name).mkdir()
        found[name] = trained(tmp_path / name, *EXACT, *strategy, *options)
    assert_same_result(found["ddp"], found["single"])
    assert curves(found["single"]) != pytest.approx(curves(single), abs=1e-10), "the options do nothing"


@pytest.mark.slow
def test_strategies_agree_on_a_fine_tuned_network_with_weighted_labels(single: Path, tmp_path: Path) -> None:
    """Some of it frozen, some of it slower, the last layer new: a file of the network alone names no labels."""
    network = {name.removeprefix("net.1."): tensor for name, tensor in weights(single).items() if "net.1." in name}
    save_file(network, tmp_path / "network.safetensors")
    start = (f"weights={tmp_path / 'network.safetensors'}", "freeze=net.1.{{ "layers.0" if cookiecutter.data_kind == "tables" else "features.0" }}.*")
    tuned = (*EXACT, *start, "pretrained_lr_factor=0.1", "model.class_weights={{ "[1,3]" if cookiecutter.data_kind == "tables" else "[1,2,3,4,5,6,7,8,9,10]" }}")
    strategies = {"single": (), "ddp": (*TWO_PROCESSES, "data.micro_batch_size=16")}
    found = {}
    for name, strategy in strategies.items():
        (tmp_path / name).mkdir()
        found[name] = trained(tmp_path / name, *tuned, *strategy)
    assert_same_result(found["ddp"], found["single"])


def test_ddp_leaves_one_run_directory_with_one_log(single: Path, ddp: Path) -> None:
    alone, together = (sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (single, ddp))
    assert together == alone
    assert (ddp / "train.log").read_text(encoding="utf-8").count("training ") == 1


# Sets of several sizes, evaluated in one start of the processes.
SIZES = """
import json

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from PACKAGE.engine.spec import DataSpec
from PACKAGE.models.classifier import Classifier
from PACKAGE.engine.training.callbacks.epoch_values import EpochValues
from PACKAGE.engine.warning_filters import IGNORED_WARNINGS, ignore_warnings
from PACKAGE.engine.distributed.devices import resolve_devices
from PACKAGE.engine.distributed.strategies import build_strategy, strategy_options

OPTIONS = dict(name="ddp", find_unused_parameters=False, gradient_as_bucket_view=True, static_graph=False,
               bucket_cap_mb=25, compression="none", powersgd_rank=1, powersgd_start_step=2, max_restarts=0)

class Samples(pl.LightningDataModule):
    def __init__(self, size):
        super().__init__()
        numbers = torch.Generator().manual_seed(size)
        inputs = torch.randint(256, (size, 1, 8, 8), dtype=torch.uint8, generator=numbers)
        self.samples = TensorDataset(inputs, torch.randint(10, (size,), generator=numbers))

    def test_dataloader(self):
        return DataLoader(self.samples, 64)

ignore_warnings(*IGNORED_WARNINGS)
devices = resolve_devices("cpu", None, "ddp")
spec = DataSpec("set", "classification", (1, 8, 8), "uint8", (0.0, 255.0), tuple("0123456789"), (128.0,), (70.0,))
found = {}
for size in (1, 5, 359, 360):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = Classifier(spec, lambda spec: net, torch.optim.SGD)
    strategy = build_strategy(strategy_options(OPTIONS), devices)
    trainer = pl.Trainer(accelerator="cpu", devices=devices.for_trainer(), strategy=strategy, logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False,
                         callbacks=[EpochValues()])
    (figures,) = trainer.test(model, datamodule=Samples(size), verbose=False)
    found[size] = {**figures, "counted": int(model.confusion_matrix.compute().sum())}
if trainer.is_global_zero:
    print("FOUND " + json.dumps(found))
if torch.distributed.is_initialized():  # what gloo leaves running can abort an interpreter that ends
    torch.distributed.destroy_process_group()
"""


def evaluated(folder: Path, num_processes: int) -> dict[str, dict[str, float]]:
    (folder / "sizes.py").write_text(SIZES.replace("PACKAGE", package.__name__), encoding="utf-8")
    printed = torchrun(folder, "--standalone", "--nproc-per-node", str(num_processes), "sizes.py")
    (line,) = (line for line in printed.splitlines() if line.startswith("FOUND "))
    found: dict[str, dict[str, float]] = json.loads(line.removeprefix("FOUND "))
    return found


def test_evaluation_counts_every_sample_once_on_one_two_and_three_processes(tmp_path: Path) -> None:
    """A rank without a sample too: one sample on two processes."""
    alone = evaluated(tmp_path, 1)
    for num_processes in (2, 3):
        together = evaluated(tmp_path, num_processes)
        for size, figures in together.items():
            assert figures["counted"] == int(size)
            assert figures["test/acc"] == alone[size]["test/acc"]
            assert figures["test/f1"] == alone[size]["test/f1"]
            assert figures["test/loss"] == pytest.approx(alone[size]["test/loss"], rel=1e-6)


# Options of the Trainer and of the data in tests/engine/plain.py, each of which is one training.
PLAIN: list[dict[str, Any]] = [
    {},  # three random generators, 97 samples in batches of 32: the last batch has one
    {"data": {"num_workers": 2}},
    {"num_steps": 2},
    {"num_steps": 3, "data": {"batch_size": 31, "kind": "split"}},
    {"data": {"kind": "weighted", "num_test": 1}},
    {"data": {"num_train": 5, "batch_size": 1}},  # all ranks but the first have no sample
    {"limit_train_batches": 2, "limit_val_batches": 2, "limit_test_batches": 0.6},
    {"limit_train_batches": 2, "data": {"num_workers": 2}},
    {"most": 2, "data": {"num_workers": 2}},  # each epoch is ended by -1
    {"max_steps": 5, "max_epochs": -1},
    {"overfit_batches": 2},
    {"fast_dev_run": True},
    {"data": {"kind": "iterable"}},
]
# Sets and batches that divide by no number of processes, also with micro-batches.
SIZES_OF_SETS = [
    {"data": {"num_train": size, "batch_size": 30}, "num_steps": num_steps, "max_epochs": 1}
    for size in (1, 97, 361)
    for num_steps in (1, 2)
]


def run_script(name: str, num_processes: int, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a script beside the tests finds in each of the runs."""
    folder = Path(__file__).parents[1]
    printed = torchrun(folder, "--standalone", "--nproc-per-node", str(num_processes), name, json.dumps(runs))
    (line,) = (line for line in printed.splitlines() if line.startswith("FOUND "))
    found: list[dict[str, Any]] = json.loads(line.removeprefix("FOUND "))
    return found


def test_plain_lightning_code_gives_the_same_result_on_one_two_and_three_processes() -> None:
    """Ordinary DataLoaders, whose batches and sets divide by neither, and logged values and metrics.

    The figures of an epoch are over exactly its samples.
    """
    alone = run_script("plain.py", 1, [*PLAIN, *SIZES_OF_SETS])
    whole, workers, micro_batches, *_ = alone
    assert whole["weights"] == pytest.approx(workers["weights"], abs=0)
    assert whole["drawn"] == workers["drawn"], "worker processes move no generator of the main process"
    assert whole["weights"] == pytest.approx(micro_batches["weights"], abs=1e-10)
    assert (whole["seen"], whole["val/samples"], whole["test/samples"]) == (3 * 97, 33, 41)
    assert (alone[6]["val/samples"], alone[6]["test/samples"], alone[7]["weights"]) == (32, 26, alone[6]["weights"])
    assert [found["train/samples"] for found in alone[len(PLAIN) :]] == [1, 1, 97, 97, 361, 361]
    for num_processes in (2, 3):
        together = run_script("plain.py", num_processes, [*PLAIN, *SIZES_OF_SETS])
        for options, expected, found in zip([*PLAIN, *SIZES_OF_SETS], alone, together, strict=True):
            assert found == pytest.approx({**expected, "drawn": found["drawn"]}, abs=1e-10), options


@pytest.mark.slow
def test_plain_lightning_code_gives_the_same_result_under_fsdp() -> None:
    alone = run_script("plain.py", 1, [*PLAIN, *SIZES_OF_SETS])
    sharded = [{"strategy": "fsdp", **options} for options in [*PLAIN, *SIZES_OF_SETS]]
    for options, expected, found in zip(sharded, alone, run_script("plain.py", 2, sharded), strict=True):
        assert found == pytest.approx({**expected, "drawn": found["drawn"]}, abs=1e-10), options


def test_fsdp_shards_what_it_is_told_and_refuses_what_it_cannot(tmp_path: Path) -> None:
    """Manual optimisation too, and an optimizer whose parameters are not in the order of the module."""
    two, saved = {"module": "two networks"}, str(tmp_path / "fsdp.ckpt")
    sometimes = {"module": "sometimes", "num_steps": 2}
    alone, plain, halfway, counted = run_script(
        "plain.py", 1, [two, {}, {**two, "max_epochs": 1, "save": str(tmp_path / "single.ckpt")}, sometimes]
    )
    assert counted["refused"] == "training_step calls loss_normalizer in some micro-batches only: call it in each."
    trained = [
        ({**two}, alone),
        ({**two, "max_epochs": 1, "save": saved}, halfway),
        ({**two, "ckpt_path": saved}, alone),
        ({**two, "ckpt_path": str(tmp_path / "single.ckpt")}, alone),
        ({"sharding": {"layer_classes": ["Linear"], "activation_checkpointing": True}}, plain),
        ({"sharding": {"cpu_offload": True}, "gradient_clip_val": 1e9}, plain),
    ]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"module": "scalar"}, "strategy=fsdp cannot shard own, a single number: give the parameter the shape (1,)."),
        ({"module": "loose"}, "strategy=fsdp cannot shard own of Unshardable under manual optimisation: let a module"),
        ({"module": "tied"}, "strategy=fsdp cannot shard Unshardable under manual optimisation, because two of its"),
        ({"module": "kept"}, "configure_optimizers names parameters that the module no longer has, because"),
        (
            {"module": "writes", "sharding": {"min_num_weights": 10**6}},
            "training_step writes into weights, which strategy=fsdp drops after the step: write into them in",
        ),
        ({"module": "uncalled"}, "training_step uses weights of a part of the network without calling that part"),
        (
            {"sharding": {"layer_classes": ["Linaer"]}},
            "strategy.layer_classes names Linaer, and the model has none that can be sharded on its own; did you mean",
        ),
        (
            {"sharding": {"min_num_weights": 10**6, "activation_checkpointing": True}},
            "strategy.activation_checkpointing=true is for parts that are sharded on their own, and none has",
        ),
    ]
    runs = [{"strategy": "fsdp", **options} for options, _ in (*trained, *refused)]
    found = run_script("plain.py", 2, runs)
    for (options, expected), together in zip(trained, found, strict=False):
        seen = {"seen": together["seen"]} if "ckpt_path" in options else {}  # of the second half alone
        assert together == pytest.approx({**expected, **seen, "drawn": together["drawn"]}, abs=1e-10), options
    for (_, sentence), outcome in zip(refused, found[len(trained) :], strict=True):
        assert outcome["refused"].startswith(sentence)


def test_figures_of_an_epoch_are_those_of_all_ranks_though_none_was_synchronised(tmp_path: Path) -> None:
    """Means, sums and extremes, of an epoch that goes on in its middle too."""
    hooks = [f"on_{split}_epoch_end" for split in ("train", "validation", "test")]
    runs: list[dict[str, Any]] = [
        {},
        {"num_steps": 12},  # of 16, 8 in an epoch
        {"ckpt_path": str(tmp_path / "middle.ckpt")},
        *({"hook": hook} for hook in hooks),
        *({"hook": hook, "synchronised": True} for hook in hooks),
    ]
    runs = [{"folder": str(tmp_path), **options} for options in runs]
    alone, _, resumed_alone = run_script("epochs.py", 1, runs[:3])
    assert (alone["train/samples"], alone["val/samples"], alone["test/samples"]) == (97, 33, 41)
    assert resumed_alone == pytest.approx(alone, abs=1e-10)
    together, _, resumed, *ended = run_script("epochs.py", 2, runs)
    assert together == pytest.approx(alone, abs=1e-10)
    assert resumed == pytest.approx(together, abs=1e-10)
    for found in ended[:3]:
        assert found["refused"].startswith("'own' was never synchronised: it is 1 on one rank and 2 on another.")
    assert [found["own"] for found in ended[3:]] == [1.5] * 3


def test_habits_of_code_for_one_process_are_refused_or_made_right(tmp_path: Path) -> None:
    refused = {
        "log in one process": "'rare' was logged by some processes only: log it in each step, with the number of its",
        "loss.backward()": "training_step calls loss.backward(), which counts all parts of a batch alike",
        "None": "training_step returned None, and the other processes would wait for this one",
        "other labels": "the processes read different values as the same samples of NoisyRows: its split, labels",
    }
    habits = [*refused, "log no sample in the other process"]
    *found, counted = run_script("epochs.py", 2, [{"folder": str(tmp_path), "habit": habit} for habit in habits])
    for outcome, sentence in zip(found, refused.values(), strict=True):
        assert outcome["refused"].startswith(sentence)
    assert 0 < counted["rare"] < counted["second"]


@pytest.mark.slow
def test_torchrun_trains_what_the_command_trains(ddp: Path, tmp_path: Path) -> None:
    printed = torchrun(tmp_path, "--nproc-per-node", "2", "-m", package.__name__, "train", "strategy=ddp", *EXACT)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert_same_result(run_dir, ddp)
    assert printed.count("training ") == 1
    assert (run_dir / "train.log").read_text(encoding="utf-8").count("training ") == 1
    assert sorted(path.name for path in run_dir.iterdir()) == sorted(path.name for path in ddp.iterdir())


def test_sweep_leaves_its_job_folders_and_a_refused_job_stops_no_other(tmp_path: Path) -> None:
    options = ("-m", "model.optimizer.lr=-1,0.001", "trainer=cpu", "trainer.max_epochs=1", *TWO_PROCESSES)
    swept = run_command("train", *options, cwd=tmp_path, check=False)
    assert swept.returncode == 2
    assert "Invalid learning rate: -1" in swept.stderr
    assert not (tmp_path / "logs/train/runs").exists()
    (sweep,) = (tmp_path / "logs/train/multiruns").iterdir()
    assert sorted(path.name for path in sweep.iterdir()) == ["1", "multirun.yaml"]
    assert (sweep / "1/checkpoints/best.ckpt").is_file()
