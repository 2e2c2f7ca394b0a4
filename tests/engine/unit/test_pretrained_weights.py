"""Fine-tuning: transfer of pretrained weights, freezing and groups of parameters."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_models import make_spec, make_trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from {{ cookiecutter.package_name }}.data.digits import DigitsDataModule
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.reporting.run_report import _rates
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training import checkpoints, fine_tuning
from {{ cookiecutter.package_name }}.engine.training.optimizers import FSDP_PREFIX, build_optimizer, head_parameters
from {{ cookiecutter.package_name }}.models.classifier import Classifier
from {{ cookiecutter.package_name }}.models.cnn import CNN

DIGITS = DigitsDataModule().spec
HEAD = {"net.1.head.2.weight", "net.1.head.2.bias"}


def make_cnn(spec: DataSpec = DIGITS, widths: tuple[int, ...] = (32, 64, 64), **options: Any) -> Classifier:
    return Classifier(
        spec,
        partial(CNN, widths=list(widths), num_groups=8, dropout=0.0),
        partial(torch.optim.AdamW, lr=0.01, fused=True),
        **options,
    )


def with_weights(model: Classifier, weights: Path) -> tuple[Classifier, set[str]]:
    """The model, and the names of the tensors that differ from the file."""
    model.weights = str(weights)
    assert fine_tuning.load_starting_point(model, None) is None
    given = fine_tuning.read_weights(weights).tensors
    given = given if "net.0.mean" in given else {f"net.1.{name}": tensor for name, tensor in given.items()}
    own = model.state_dict()
    return model, {name for name in own if name not in given or not torch.equal(own[name], given[name])}


def labelled(*labels: str) -> DataSpec:
    return replace(DIGITS, labels=labels, mean=(1.0,), std=(2.0,))


def test_all_weights_are_taken_for_the_same_labels(best_checkpoint: Path) -> None:
    model, differing = with_weights(make_cnn(labelled(*DIGITS.labels)), best_checkpoint)
    assert differing == set()
    assert model.pretrained_names == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "labels", [("a", "b", "c"), tuple("abcdefghij"), DIGITS.labels[::-1]], ids=["fewer", "other", "in another order"]
)
def test_last_layer_starts_anew_for_other_labels(
    labels: tuple[str, ...], best_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, differing = with_weights(make_cnn(labelled(*labels)), best_checkpoint)
    assert differing == HEAD
    assert model.pretrained_names == {name for name, _ in model.named_parameters()} - HEAD
    assert "best.ckpt: 11 tensors taken, 2 start anew: net.1.head.2.weight, net.1.head.2.bias" in caplog.text


def test_file_of_the_network_alone_is_accepted(tmp_path: Path) -> None:
    save_file(make_cnn().net[1].state_dict(), tmp_path / "alone.safetensors")
    _, differing = with_weights(make_cnn(), tmp_path / "alone.safetensors")
    assert differing == HEAD | {"net.0.mean", "net.0.std"}, "the file does not contain its labels"


def test_input_is_normalised_as_in_the_training_of_the_weights(best_checkpoint: Path) -> None:
    other = labelled("a", "b")
    model, _ = with_weights(make_cnn(other), best_checkpoint)
    assert (model.spec.mean, model.spec.labels) == (DIGITS.mean, ("a", "b"))
    assert model.net[0].mean.item() == pytest.approx(DIGITS.mean[0])
    assert checkpoints.self_description({}, {}, 1, model)["spec"]["mean"] == [*DIGITS.mean]
    float_input = replace(other, input_dtype="float32", input_range=(0.0, 1.0))
    model, differing = with_weights(make_cnn(float_input), best_checkpoint)
    assert differing == HEAD | {"net.0.mean", "net.0.std"}
    assert model.spec.mean == (1.0,)


def test_weights_of_another_network_are_refused(best_checkpoint: Path) -> None:
    weights = str(best_checkpoint)
    with pytest.raises(UserError, match=r"fits 10 of the 1,970 .* is \(8, 1, 3, 3\) here, \(32, 1, 3, 3\) there"):
        fine_tuning.load_starting_point(make_cnn(widths=(8, 8), weights=weights), None)
    with pytest.raises(UserError, match=r"'net.1.features.10.weight' is \(64, 64, 3, 3\) here, not there\)"):
        fine_tuning.load_starting_point(make_cnn(widths=(32, 64, 64, 64, 64, 64), weights=weights), None)
    more = make_cnn(widths=(32, 64, 64, 8), weights=weights)  # the bulk fits
    fine_tuning.load_starting_point(more, None)
    assert "net.1.features.7.weight" in more.pretrained_names
    assert "net.1.features.10.weight" not in more.pretrained_names


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
        with pytest.raises(UserError, match=f"^model.weights={tmp_path / name}.*{sentence}"):
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
    spec, before = make_spec(), torch.get_rng_state()
    net = HeadFirst(spec)
    torch.set_rng_state(before)
    found = head_parameters(net, HeadFirst, spec)
    assert found == {"answer.weight", "answer.bias", "second.weight"}
    assert torch.equal(torch.get_rng_state(), before), "random numbers of the run must not change"


def test_frozen_weights_and_their_running_statistics_do_not_change() -> None:
    """Lightning warns of modules that are in evaluation mode at the start, and every warning is an error here."""
    datamodule, optimizer = DigitsDataModule(batch_size=200), partial(torch.optim.AdamW, lr=0.01, fused=True)
    model = Classifier(datamodule.spec, HeadFirst, optimizer, freeze="net.1.body.2.*")
    model.net = nn.SyncBatchNorm.convert_sync_batchnorm(model.net)  # replaces modules, as trainer.sync_batchnorm does
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_trainer(max_epochs=2).fit(model, datamodule=datamodule)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"net.1.{layer}.{name}" for layer in ("answer", "body.1") for name in ("weight", "bias")}
    free = Classifier(datamodule.spec, HeadFirst, optimizer, freeze="net.1.body.1.*")
    make_trainer(max_epochs=1).fit(free, datamodule=datamodule)
    assert free.net[1].body[2].num_batches_tracked > 0, "a norm that trains updates its statistics"


def test_impossible_freezing_is_refused(best_checkpoint: Path) -> None:
    with pytest.raises(
        UserError, match=r"=net.2.\* fits no weight: there are net.1.features.0.weight, .* net.1.head.2"
    ):
        make_cnn(freeze="net.2.*")
    with pytest.raises(UserError, match=r"freezes every weight: leave out those that are to train"):
        make_cnn(freeze=["net.1.features.*", "net.1.head.*"])
    head_frozen = make_cnn(labelled("a", "b"), freeze="net.1.head.*", weights=str(best_checkpoint))
    with pytest.raises(UserError, match=r"model.freeze holds 'net.1.head.2.weight', which starts anew"):
        fine_tuning.load_starting_point(head_frozen, None)


def test_pretrained_weights_have_their_own_learning_rate(best_checkpoint: Path) -> None:
    rates: list[list[float]] = []
    scheduler, options = partial(ExponentialLR, gamma=0.5), {"pretrained_lr_factor": 0.1, "warmup_steps": 1}
    model, _ = with_weights(make_cnn(labelled("a", "b"), scheduler=scheduler, **options), best_checkpoint)
    (optimizer,), schedulers = model.configure_optimizers()  # type: ignore[misc]
    assert [(group["name"], len(group["params"])) for group in optimizer.param_groups] == [
        ("pretrained", 9),
        ("new", 2),
    ]
    assert optimizer.param_groups[0]["fused"]
    for _ in range(2):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        for entry in schedulers:
            entry["scheduler"].step()
    assert rates == [pytest.approx([0.0005, 0.005]), pytest.approx([0.0005, 0.005])], "warm-up, then gamma"
    assert _rates(model) == "0.001 (pretrained), 0.01 (new)"
    assert _rates(make_cnn()) == "0.01"


def test_parameter_names_under_fsdp_match_those_of_the_checkpoint() -> None:
    weights = [(f"net.{FSDP_PREFIX}weight", nn.Parameter(torch.zeros(1))), ("net.bias", nn.Parameter(torch.zeros(1)))]
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=1.0), weights, {"net.weight"}, pretrained_lr_factor=0.5)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("pretrained", 0.5), ("new", 1.0)]


def test_scheduler_that_overrides_the_learning_rate_is_refused(best_checkpoint: Path) -> None:
    options = {"weights": str(best_checkpoint), "pretrained_lr_factor": 0.1}
    one_cycle = partial(OneCycleLR, max_lr=0.01, total_steps=10)
    with pytest.raises(
        UserError, match=r"model.scheduler sets learning rates of its own, over model.pretrained_lr_factor=0.1"
    ):
        fine_tuning.load_starting_point(make_cnn(labelled("a", "b"), scheduler=one_cycle, **options), None)
    two_rates = partial(OneCycleLR, max_lr=[0.001, 0.01], total_steps=10)
    fine_tuning.load_starting_point(make_cnn(labelled("a", "b"), scheduler=two_rates, **options), None)
    with pytest.raises(UserError, match=r"pretrained_lr_factor=0.1 is for pretrained weights: give model.weights="):
        fine_tuning.load_starting_point(make_cnn(pretrained_lr_factor=0.1), None)
    with pytest.raises(UserError, match=r"pretrained_lr_factor=2 is out of range: give more than 0, and at most 1"):
        make_cnn(pretrained_lr_factor=2)


def test_resumed_run_has_its_groups_without_the_file(best_checkpoint: Path, tmp_path: Path) -> None:
    contents = torch.load(best_checkpoint, weights_only=True)
    names = sorted({name for name in contents["state_dict"] if "features" in name})
    contents["project"]["pretrained_names"] = names
    torch.save(contents, tmp_path / "last.ckpt")
    model = make_cnn(labelled(*DIGITS.labels), pretrained_lr_factor=0.1)
    before = fine_tuning.load_starting_point(model, str(tmp_path / "last.ckpt"))
    assert before is not None
    assert before.step == contents["global_step"]
    assert sorted(model.pretrained_names) == names
    assert model.spec.mean == DIGITS.mean, "as in the network: the manifest is derived from it"
    groups = model.build_optimizer().param_groups
    assert {group["name"]: group["lr"] for group in groups} == {"pretrained": pytest.approx(0.001), "new": 0.01}
