"""Fine-tuning: transfer of pretrained weights, freezing and groups of parameters."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from digits import optimization, train_options
from safetensors.torch import save_file
from test_models import make_spec, make_trainer
from torch import Tensor, nn

from {{ cookiecutter.package_name }}.data.digits import DigitsDataModule
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training import checkpoints, fine_tuning
from {{ cookiecutter.package_name }}.engine.training.build import build_model
from {{ cookiecutter.package_name }}.engine.training.callbacks.optimization import freeze_named
from {{ cookiecutter.package_name }}.engine.training.fine_tuning import load_starting_point
from {{ cookiecutter.package_name }}.models.classifier import Classifier
from {{ cookiecutter.package_name }}.models.cnn import CNN

DIGITS = DigitsDataModule().spec
HALVED = "torch.optim.lr_scheduler.ExponentialLR"
HEAD = {"net.1.head.2.weight", "net.1.head.2.bias"}


def section(net: type[nn.Module] = CNN, **options: Any) -> dict[str, Any]:
    """As of a configuration, with CNN's options by default."""
    names = {kind: f"{kind.__module__}.{kind.__qualname__}" for kind in (Classifier, net)}
    options = {"widths": [32, 64, 64], "num_groups": 8, "dropout": 0.0, **options} if net is CNN else options
    optimizer = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.01, "fused": True}
    return {
        "_target_": names[Classifier],
        "net": {"_target_": names[net], "_partial_": True, **options},
        "optimizer": optimizer,
    }


def begun(
    spec: DataSpec, weights: Path, model_section: dict[str, Any] | None = None, **options: Any
) -> tuple[Any, frozenset[str], Any, set[str]]:
    """The model that starts from `weights`, what was taken, the new spec, and the tensors that differ from the file."""
    model_section = model_section or section()
    model = build_model(model_section, spec)
    checkpoint, names, spec = load_starting_point(
        model, model_section, spec, train_options(weights=str(weights), **options)
    )
    assert checkpoint is None
    given = fine_tuning.read_weights(weights).tensors
    given = given if "net.0.mean" in given else {f"net.1.{name}": tensor for name, tensor in given.items()}
    own = model.state_dict()
    return model, names, spec, {name for name in own if name not in given or not torch.equal(own[name], given[name])}


def labelled(*labels: str) -> DataSpec:
    return replace(DIGITS, labels=labels, mean=(1.0,), std=(2.0,))


def parameters(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def test_all_weights_are_taken_for_the_same_labels(best_checkpoint: Path) -> None:
    model, names, _, differing = begun(labelled(*DIGITS.labels), best_checkpoint)
    assert differing == set()
    assert names == parameters(model)


@pytest.mark.parametrize(
    "labels", [("a", "b", "c"), tuple("abcdefghij"), DIGITS.labels[::-1]], ids=["fewer", "other", "in another order"]
)
def test_last_layer_starts_anew_for_other_labels(
    labels: tuple[str, ...], best_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, names, _, differing = begun(labelled(*labels), best_checkpoint)
    assert differing == HEAD
    assert names == parameters(model) - HEAD
    assert "best.ckpt: 11 tensors taken, 2 start anew: net.1.head.2.weight, net.1.head.2.bias" in caplog.text


def test_file_of_the_network_alone_is_accepted(tmp_path: Path) -> None:
    network: Any = build_model(section(), DIGITS).net
    save_file(network[1].state_dict(), tmp_path / "alone.safetensors")
    *_, differing = begun(DIGITS, tmp_path / "alone.safetensors")
    assert differing == HEAD | {"net.0.mean", "net.0.std"}, "the file does not contain its labels"


def test_input_is_normalised_as_in_the_training_of_the_weights(best_checkpoint: Path) -> None:
    other = labelled("a", "b")
    model, names, spec, _ = begun(other, best_checkpoint)
    assert (spec.mean, spec.labels) == (DIGITS.mean, ("a", "b"))
    assert model.net[0].mean.item() == pytest.approx(DIGITS.mean[0])
    config: Any = {"data": {}, "model": {}, "trainer": {}}
    assert checkpoints.self_description(config, train_options(), spec, names)["spec"]["mean"] == [*DIGITS.mean]
    float_input = replace(other, input_dtype="float32", input_range=(0.0, 1.0))
    model, _, spec, differing = begun(float_input, best_checkpoint)
    assert differing == HEAD | {"net.0.mean", "net.0.std"}
    assert spec.mean == (1.0,)


def test_weights_of_another_network_are_refused(best_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"fits 10 of the 1,970 .* is \(8, 1, 3, 3\) here, \(32, 1, 3, 3\) there"):
        begun(DIGITS, best_checkpoint, section(widths=[8, 8]))
    with pytest.raises(UserError, match=r"'net.1.features.10.weight' is \(64, 64, 3, 3\) here, not there\)"):
        begun(DIGITS, best_checkpoint, section(widths=[32, 64, 64, 64, 64, 64]))
    _, names, *_ = begun(DIGITS, best_checkpoint, section(widths=[32, 64, 64, 8]))  # the bulk fits
    assert "net.1.features.7.weight" in names
    assert "net.1.features.10.weight" not in names


def test_weights_that_cannot_be_read_are_refused(best_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"no such thing")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors", metadata={"spec": "[1"})
    for name, sentence in (
        ("missing.safetensors", "does not exist"),
        ("missing.ckpt", "does not exist"),
        ("damaged.safetensors", "cannot be read"),
        ("foreign.safetensors", "cannot be read"),
        (".", "is a folder: give the file in it"),
    ):
        with pytest.raises(UserError, match=f"^weights={tmp_path / name}.*{sentence}"):
            fine_tuning.read_weights(tmp_path / name)


class HeadFirst(nn.Module):
    """A network whose last layer is defined first, and which has a second one that is unused."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.answer = nn.Linear(4, spec.num_outputs)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))
        self.second = nn.Linear(4, spec.num_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.answer(self.body(x))
        return logits


def test_last_layer_is_found_by_its_dependence_on_the_labels() -> None:
    spec, model_section = make_spec(), section(HeadFirst)
    model, before = build_model(model_section, spec), torch.get_rng_state()
    found = fine_tuning.head_parameters(model, model_section, spec)
    assert found == {"net.1.answer.weight", "net.1.answer.bias", "net.1.second.weight"}
    assert torch.equal(torch.get_rng_state(), before), "random numbers of the run must not change"


class OwnModule(pl.LightningModule):
    """Takes no spec, and builds its layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(64, 4), nn.Linear(4, 10)


def test_module_without_a_network_of_the_configuration_keeps_all_that_fits(tmp_path: Path) -> None:
    """Nobody can tell which of its layers depends on the labels."""
    given = OwnModule()
    save_file(given.state_dict(), tmp_path / "own.safetensors")
    model, target = OwnModule(), {"_target_": f"{OwnModule.__module__}.{OwnModule.__qualname__}"}
    options = train_options(weights=str(tmp_path / "own.safetensors"))
    _, names, spec = load_starting_point(model, target, labelled("a", "b"), options)
    assert names == parameters(model)
    assert torch.equal(model.last.weight, given.last.weight)
    assert spec == labelled("a", "b")


def make_classifier(spec: DataSpec, net: Any = HeadFirst) -> Classifier:
    return Classifier(spec, net, partial(torch.optim.AdamW, lr=0.01, fused=True))


def test_frozen_weights_and_their_running_statistics_do_not_change() -> None:
    """Lightning warns of modules that are in evaluation mode at the start, and every warning is an error here."""
    datamodule = DigitsDataModule(batch_size=200)
    model = make_classifier(datamodule.spec)
    freeze_named(model, "net.1.body.2.*")
    model.net = nn.SyncBatchNorm.convert_sync_batchnorm(model.net)  # replaces modules, as trainer.sync_batchnorm does
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(max_epochs=2, callbacks=[optimization(freeze="net.1.body.2.*")])
    trainer.fit(model, datamodule=datamodule)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"net.1.{layer}.{name}" for layer in ("answer", "body.1") for name in ("weight", "bias")}
    free = make_classifier(datamodule.spec)
    freeze_named(free, "net.1.body.1.*")
    trainer = make_trainer(max_epochs=1, callbacks=[optimization(freeze="net.1.body.1.*")])
    trainer.fit(free, datamodule=datamodule)
    statistics: Any = free.net
    assert statistics[1].body[2].num_batches_tracked > 0, "a norm that trains updates its statistics"


def test_impossible_freezing_is_refused(best_checkpoint: Path) -> None:
    model, sentence = build_model(section(), DIGITS), r"there are net.1.features.0.weight, .* net.1.head.2"
    with pytest.raises(UserError, match=rf"^freeze=net.2.\* fits no weight: {sentence}"):
        load_starting_point(model, section(), DIGITS, train_options(freeze="net.2.*"))
    everything = train_options(freeze=["net.1.features.*", "net.1.head.*"])
    with pytest.raises(UserError, match=r"freezes every weight: leave out those that are to train"):
        load_starting_point(model, section(), DIGITS, everything)
    with pytest.raises(UserError, match=r"freeze holds 'net.1.head.2.weight', which starts anew"):
        begun(labelled("a", "b"), best_checkpoint, freeze="net.1.head.*")


class Groups(pl.Callback):
    """Notes the names, the sizes and the learning rates of the groups in each step."""

    def __init__(self) -> None:
        self.names: list[tuple[Any, int]] = []
        self.rates: list[Any] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        (optimizer,) = trainer.optimizers
        self.names = [(group.get("name"), len(group["params"])) for group in optimizer.param_groups]
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        assert all(group["fused"] for group in optimizer.param_groups)


def fitted(model: Classifier, names: frozenset[str], num_epochs: int = 2, **options: Any) -> Groups:
    """One step an epoch."""
    groups, datamodule = Groups(), DigitsDataModule(batch_size=200)
    options = {"callbacks": [optimization(names, **options), groups], "limit_train_batches": 1}
    make_trainer(max_epochs=num_epochs, limit_val_batches=0, **options).fit(model, datamodule=datamodule)
    return groups


def test_pretrained_weights_have_their_own_learning_rate(
    best_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    halved = section() | {"scheduler": {"_target_": HALVED, "_partial_": True, "gamma": 0.5}}
    model, names, *_ = begun(DIGITS, best_checkpoint, halved)
    names -= HEAD
    groups = fitted(model, names, 3, pretrained_lr_factor=0.1, warmup_steps=1)
    assert groups.names == [("pretrained", 9), ("new", 2)]
    assert groups.rates == [
        pytest.approx([0.0005, 0.005]),
        pytest.approx([0.0005, 0.005]),
        pytest.approx([0.00025, 0.0025]),
    ]
    assert "learning rate 0.001 (pretrained), 0.01 (new)" in caplog.text
    caplog.clear()
    assert fitted(build_model(section(), DIGITS), frozenset(), 1).rates == [[0.01]]
    assert "learning rate 0.01\n" in caplog.text


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'")
def test_scheduler_that_overrides_the_learning_rate_is_refused(best_checkpoint: Path) -> None:
    def one_cycle(max_lr: Any) -> dict[str, Any]:
        schedule = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "_partial_": True, "max_lr": max_lr}
        return section() | {"scheduler": schedule | {"total_steps": 10}}

    model, names, *_ = begun(labelled(*DIGITS.labels), best_checkpoint, one_cycle(0.01), pretrained_lr_factor=0.1)
    names -= HEAD
    with pytest.raises(
        UserError, match=r"model.scheduler sets learning rates of its own, over pretrained_lr_factor=0.1"
    ):
        fitted(model, names, pretrained_lr_factor=0.1)
    model = build_model(one_cycle([0.001, 0.01]), DIGITS)
    slow, fast = fitted(model, names, 1, pretrained_lr_factor=0.1).rates[0]
    assert fast == pytest.approx(10 * slow)
    with pytest.raises(UserError, match=r"pretrained_lr_factor=0.1 is for pretrained weights: give weights="):
        load_starting_point(model, section(), DIGITS, train_options(pretrained_lr_factor=0.1))


def test_resumed_run_has_its_groups_without_the_file(best_checkpoint: Path, tmp_path: Path) -> None:
    contents = torch.load(best_checkpoint, weights_only=True)
    features = sorted({name for name in contents["state_dict"] if "features" in name})
    contents["project"]["pretrained_names"] = features
    torch.save(contents, tmp_path / "last.ckpt")
    options, spec = {"pretrained_lr_factor": 0.1, "ckpt_path": str(tmp_path / "last.ckpt")}, labelled(*DIGITS.labels)
    model: Any = build_model(section(), spec)
    before, names, spec = load_starting_point(model, section(), spec, train_options(**options))
    assert before is not None
    assert before.step == contents["global_step"]
    assert sorted(names) == features
    assert spec.mean == DIGITS.mean, "as in the network: the manifest is derived from it"
    groups = fitted(model, names, 1, **options)
    assert groups.names == [("pretrained", 9), ("new", 2)]
    assert groups.rates == [pytest.approx([0.001, 0.01])]
