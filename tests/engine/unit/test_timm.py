"""`model=timm`, with timm's small test networks and files of weights that are written here."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from digits import train_options
from PIL import Image
from safetensors.torch import save_file
from test_models import make_spec
from torch import Tensor, nn

from {{ cookiecutter.package_name }}.engine.distributed.strategies import has_changing_buffers
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training.build import build_model
from {{ cookiecutter.package_name }}.engine.training.fine_tuning import load_starting_point
from {{ cookiecutter.package_name }}.engine.training.layers import Normalize
from {{ cookiecutter.package_name }}.engine.training.timm_network import TimmNet
from {{ cookiecutter.package_name }}.models.classifier import Classifier

SPEC = make_spec((3, 32, 32), num_labels=5)


def section(name: str = "test_resnet", **options: Any) -> dict[str, Any]:
    kinds = {"model": Classifier, "net": TimmNet, "optimizer": torch.optim.SGD}
    targets = {key: {"_target_": f"{kind.__module__}.{kind.__qualname__}"} for key, kind in kinds.items()}
    net = {**targets["net"], "_partial_": True, "name": name, **options}
    return {**targets["model"], "net": net, "optimizer": {**targets["optimizer"], "_partial_": True, "lr": 0.1}}


def begun(model_section: dict[str, Any], spec: DataSpec) -> Any:
    """The model as a training begins with it."""
    model = build_model(model_section, spec)
    load_starting_point(model, model_section, spec, train_options())
    return model


def raw_pictures(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def write_weights(folder: Path, name: str = "test_resnet", kind: str = "safetensors") -> tuple[Path, nn.Module]:
    """A file of weights for 1,000 labels in timm's form, and the network that it belongs to."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = timm.create_model(name)
    file = folder / f"{name}.{kind}"
    if kind == "safetensors":
        save_file(network.state_dict(), file)
    else:
        torch.save({"state_dict": network.state_dict(), "epoch": 3}, file)
    return file, network.eval()


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])  # with ImageNet's mean and deviation, and with 0.5
def test_network_input_equals_that_of_timms_own_transform(name: str) -> None:
    spec = SPEC
    net = TimmNet(spec, name=name)
    config = timm.data.resolve_model_data_config(net.network)
    transform = timm.data.create_transform(**{**config, "input_size": (3, 32, 32), "crop_pct": 1.0})
    pictures = raw_pictures(spec.input_shape)
    expected = [transform(Image.fromarray(picture.permute(1, 2, 0).numpy())) for picture in pictures]
    found = net.renormalize(Normalize(spec)(pictures))
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)


def test_grey_pictures_are_normalised_with_the_average_of_the_channels() -> None:
    spec = make_spec((1, 32, 32))
    net = TimmNet(spec, name="resnet18")
    pictures = raw_pictures(spec.input_shape)
    expected = (pictures / 255 - np.mean([0.485, 0.456, 0.406])) / np.mean([0.229, 0.224, 0.225])
    torch.testing.assert_close(net.renormalize(Normalize(spec)(pictures)), expected.float(), rtol=0, atol=1e-5)


def test_pretrained_network_has_the_same_output_for_grey_pictures_in_one_or_three_channels(tmp_path: Path) -> None:
    file, network = write_weights(tmp_path)
    grey, colour = make_spec((1, 32, 32), num_labels=1000), make_spec((3, 32, 32), num_labels=1000)
    pictures = raw_pictures((1, 32, 32))
    in_colour = begun(section(weights=str(file)), colour).eval()(pictures.expand(-1, 3, -1, -1))
    in_grey = begun(section(weights=str(file)), grey).eval()(pictures)
    torch.testing.assert_close(in_grey, in_colour, rtol=0, atol=1e-4)
    torch.testing.assert_close(network(pictures.expand(-1, 3, -1, -1) / 127.5 - 1), in_colour, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_training_begins_with_the_weights_of_a_file_and_a_new_last_layer(kind: str, tmp_path: Path) -> None:
    file, network = write_weights(tmp_path, kind=kind)
    torch.manual_seed(3)
    state = begun(section(weights=str(file)), SPEC).net[1].network.state_dict()
    assert state["fc.weight"].shape == (5, network.fc.in_features)
    for name, weight in network.state_dict().items():
        assert name.startswith("fc.") or torch.equal(state[name], weight), name


def test_network_may_have_two_last_layers(tmp_path: Path) -> None:
    file, network = write_weights(tmp_path, "efficientformerv2_s0")
    model = begun(section("efficientformerv2_s0", weights=str(file)), make_spec((3, 224, 224), num_labels=5))
    assert model.net[1].network.head.weight.shape == model.net[1].network.head_dist.weight.shape == (5, 176)
    assert torch.equal(model.net[1].network.stem.conv1.conv.weight, network.stem.conv1.conv.weight)


def test_pretrained_weights_do_not_change_later_random_numbers(tmp_path: Path) -> None:
    file, _ = write_weights(tmp_path)
    drawn = []
    for options in ({}, {"weights": str(file)}):
        torch.manual_seed(3)
        model = begun(section(**options), SPEC)
        assert all(part.training for part in model.modules())
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_model_that_is_not_trained_loads_no_pretrained_weights() -> None:
    """As when a checkpoint is loaded, which brings its own weights."""
    for options in ({"weights": "no-longer-there.pth"}, {"pretrained": True}):
        assert build_model(section(**options), SPEC).net[1].name == "test_resnet"


def test_download_is_timms_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = write_weights(tmp_path)
    asked = []

    def from_hub(model_id: str, **_: object) -> dict[str, Tensor]:
        asked.append(model_id)
        return dict(network.state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", from_hub)
    model = begun(section("test_resnet.r160_in1k", pretrained=True), SPEC)
    assert asked == ["timm/test_resnet.r160_in1k"]
    assert torch.equal(model.net[1].network.conv1[0].weight, network.conv1[0].weight)


def test_missing_connection_is_reported_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"does not get the weights of test_resnet \(.+\): .*model.net.weights="
    ) as error:
        begun(section(pretrained=True), SPEC)
    assert "\n" not in str(error.value)


def test_position_embeddings_are_resized_to_the_pictures(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    file, network = write_weights(tmp_path, name)
    model = begun(section(name, weights=str(file)), make_spec((3, 32, 48), num_labels=5))
    assert model(raw_pictures((3, 32, 48))).shape == (4, 5)
    assert torch.equal(model.net[1].network.blocks[0].mlp.fc1.weight, network.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize(("name", "changing"), [("test_vit", False), ("test_resnet", True)])
def test_ddp_broadcasts_statistics_of_batch_norm_but_no_constants(name: str, changing: bool) -> None:
    assert has_changing_buffers(build_model(section(name), SPEC)) == changing


def test_dropout_reaches_the_network() -> None:
    assert build_model(section(dropout=0.3), SPEC).net[1].network.drop_rate == 0.3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "resnet81"}, r"name=resnet81 is no network of timm; did you mean 'resnet18'\?"),
        ({"name": "xyz"}, r"name=xyz is no network of timm; choose one of: (\w+, ){4}\w+\.$"),
        ({"name": "hf-hub:timm/resnet18"}, r"name=hf-hub:timm/resnet18 is no network of timm"),
        ({"name": "resnet18.a9_in1k"}, r"no such weights in timm; did you mean 'resnet18.a\d_in1k'\?"),
        ({"pretrained": True, "weights": "a.pth"}, r"model.net.weights=a.pth are two beginnings: give one"),
        ({"weights": "nowhere.pth"}, r"model.net.weights=nowhere.pth does not exist"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        begun(section(**options), SPEC)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "side"), [("convnext_atto", 8), ("test_vit", 28)])
def test_pictures_that_a_network_cannot_take_are_refused(name: str, side: int) -> None:
    with pytest.raises(
        UserError, match=rf"name={name} cannot take pictures of {side} x {side} pixels \(\w+: .+\): take"
    ):
        begun(section(name), make_spec((3, side, side)))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file, _ = write_weights(tmp_path, "test_vit")
    with pytest.raises(UserError, match=r"test_vit.safetensors does not fit test_resnet: it has no conv1"):
        begun(section(weights=str(file)), SPEC)
    file, _ = write_weights(tmp_path, "resnet10t")
    with pytest.raises(UserError, match=r"resnet10t.safetensors does not fit test_resnet: "):
        begun(section(weights=str(file)), SPEC)


def test_file_that_lacks_a_layer_or_is_damaged_is_refused(tmp_path: Path) -> None:
    file, network = write_weights(tmp_path)
    state = {name: weight for name, weight in network.state_dict().items() if not name.startswith("layer2.0.conv1")}
    save_file(state, file)
    with pytest.raises(UserError, match=r"does not fit test_resnet: it has no layer2.0.conv1"):
        begun(section(weights=str(file)), SPEC)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"does not fit test_resnet: \w+"):
        begun(section(weights=str(file)), SPEC)


class RunsACommand:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PROOF"],)


def test_code_in_a_file_of_weights_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROOF", str(tmp_path / "proof"))
    torch.save({"state_dict": RunsACommand()}, tmp_path / "code.pth", pickle_module=pickle)
    with pytest.raises(UserError, match=r"code.pth does not fit test_resnet"):
        begun(section(weights=str(tmp_path / "code.pth")), SPEC)
    assert not (tmp_path / "proof").exists()
