"""`model=timm`, with small networks that timm keeps for tests; weights come from files that are written here."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from test_models import make_spec
from torch import Tensor, nn

from {{ cookiecutter.package_name }}.engine.training.build import build_model, build_for_training
from {{ cookiecutter.package_name }}.models.classifier import Classifier
from {{ cookiecutter.package_name }}.engine.training.layers import Normalize
from {{ cookiecutter.package_name }}.engine.training.timm_network import TimmNet
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.distributed.strategies import has_changing_buffers

SPEC = make_spec((3, 32, 32), num_labels=5)


def section(name: str = "test_resnet", **options: Any) -> dict[str, Any]:
    kinds = {"model": Classifier, "net": TimmNet, "optimizer": torch.optim.SGD}
    targets = {key: {"_target_": f"{kind.__module__}.{kind.__qualname__}"} for key, kind in kinds.items()}
    net = {**targets["net"], "_partial_": True, "name": name, **options}
    return {**targets["model"], "net": net, "optimizer": {**targets["optimizer"], "_partial_": True, "lr": 0.1}}


def raw_pictures(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def written(folder: Path, name: str = "test_resnet", kind: str = "safetensors") -> tuple[Path, nn.Module]:
    """A file of weights as timm has them, for 1,000 labels, and the network that they are of."""
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
def test_network_gets_what_timms_own_transform_makes_of_the_same_pixels(name: str) -> None:
    spec = SPEC
    net = TimmNet(spec, name=name)
    config = timm.data.resolve_model_data_config(net.network)
    transform = timm.data.create_transform(**{**config, "input_size": (3, 32, 32), "crop_pct": 1.0})
    pictures = raw_pictures(spec.input_shape)
    expected = [transform(Image.fromarray(picture.permute(1, 2, 0).numpy())) for picture in pictures]
    found = net.to_timms(Normalize(spec)(pictures))
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)


def test_grey_pictures_get_the_average_of_the_channels() -> None:
    spec = make_spec((1, 32, 32))
    net = TimmNet(spec, name="resnet18")
    pictures = raw_pictures(spec.input_shape)
    expected = (pictures / 255 - np.mean([0.485, 0.456, 0.406])) / np.mean([0.229, 0.224, 0.225])
    torch.testing.assert_close(net.to_timms(Normalize(spec)(pictures)), expected.float(), rtol=0, atol=1e-5)


def test_pretrained_network_answers_a_grey_picture_as_the_same_one_in_colour(tmp_path: Path) -> None:
    file, network = written(tmp_path)
    grey, colour = make_spec((1, 32, 32), num_labels=1000), make_spec((3, 32, 32), num_labels=1000)
    pictures = raw_pictures((1, 32, 32))
    in_colour = build_for_training(section(weights=str(file)), colour, 1).eval()(pictures.expand(-1, 3, -1, -1))
    in_grey = build_for_training(section(weights=str(file)), grey, 1).eval()(pictures)
    torch.testing.assert_close(in_grey, in_colour, rtol=0, atol=1e-4)
    torch.testing.assert_close(network(pictures.expand(-1, 3, -1, -1) / 127.5 - 1), in_colour, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_training_begins_with_the_weights_of_a_file_and_a_new_last_layer(kind: str, tmp_path: Path) -> None:
    file, network = written(tmp_path, kind=kind)
    torch.manual_seed(3)
    state = build_for_training(section(weights=str(file)), SPEC, 1).net[1].network.state_dict()
    assert state["fc.weight"].shape == (5, network.fc.in_features)
    for name, weight in network.state_dict().items():
        assert name.startswith("fc.") or torch.equal(state[name], weight), name


def test_network_may_have_two_last_layers(tmp_path: Path) -> None:
    file, network = written(tmp_path, "efficientformerv2_s0")
    begun = build_for_training(section("efficientformerv2_s0", weights=str(file)), make_spec((3, 224, 224), num_labels=5), 1)
    assert begun.net[1].network.head.weight.shape == begun.net[1].network.head_dist.weight.shape == (5, 176)
    assert torch.equal(begun.net[1].network.stem.conv1.conv.weight, network.stem.conv1.conv.weight)


def test_another_beginning_changes_nothing_that_is_drawn_later(tmp_path: Path) -> None:
    file, _ = written(tmp_path)
    drawn = []
    for options in ({}, {"weights": str(file)}):
        torch.manual_seed(3)
        model = build_for_training(section(**options), SPEC, 1)
        assert all(part.training for part in model.modules())
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_what_is_not_trained_fetches_no_weights() -> None:
    """So is a checkpoint loaded, whose own weights come next."""
    for options in ({"weights": "no-longer-there.pth"}, {"pretrained": True}):
        assert build_model(section(**options), SPEC).net[1].name == "test_resnet"


def test_download_is_timms_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = written(tmp_path)
    asked = []

    def from_hub(model_id: str, **_: object) -> dict[str, Tensor]:
        asked.append(model_id)
        return dict(network.state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", from_hub)
    model = build_for_training(section("test_resnet.r160_in1k", pretrained=True), SPEC, 1)
    assert asked == ["timm/test_resnet.r160_in1k"]
    assert torch.equal(model.net[1].network.conv1[0].weight, network.conv1[0].weight)


def test_without_a_network_pretrained_gets_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"does not get the weights of test_resnet \(.+\): .*model.net.weights=") as told:
        build_for_training(section(pretrained=True), SPEC, 1)
    assert "\n" not in str(told.value)


def test_positions_of_a_transformer_are_fitted_to_the_pictures(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    file, network = written(tmp_path, name)
    model = build_for_training(section(name, weights=str(file)), make_spec((3, 32, 48), num_labels=5), 1)
    assert model(raw_pictures((3, 32, 48))).shape == (4, 5)
    assert torch.equal(model.net[1].network.blocks[0].mlp.fc1.weight, network.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize(("name", "changing"), [("test_vit", False), ("test_resnet", True)])
def test_ddp_sends_the_figures_of_batch_norm_and_no_constants(name: str, changing: bool) -> None:
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
def test_what_cannot_begin_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        build_for_training(section(**options), SPEC, 1)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("name", "side"), [("convnext_atto", 8), ("test_vit", 28)])
def test_pictures_that_a_network_cannot_take_are_told(name: str, side: int) -> None:
    with pytest.raises(UserError, match=rf"name={name} cannot take pictures of {side} x {side} pixels \(\w+: .+\): take"):
        build_for_training(section(name), make_spec((3, side, side)), 1)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file, _ = written(tmp_path, "test_vit")
    with pytest.raises(UserError, match=r"test_vit.safetensors does not fit test_resnet: it has no conv1"):
        build_for_training(section(weights=str(file)), SPEC, 1)
    file, _ = written(tmp_path, "resnet10t")
    with pytest.raises(UserError, match=r"resnet10t.safetensors does not fit test_resnet: "):
        build_for_training(section(weights=str(file)), SPEC, 1)


def test_file_that_lacks_a_layer_or_is_damaged_is_refused(tmp_path: Path) -> None:
    file, network = written(tmp_path)
    state = {name: weight for name, weight in network.state_dict().items() if not name.startswith("layer2.0.conv1")}
    save_file(state, file)
    with pytest.raises(UserError, match=r"does not fit test_resnet: it has no layer2.0.conv1"):
        build_for_training(section(weights=str(file)), SPEC, 1)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"does not fit test_resnet: \w+"):
        build_for_training(section(weights=str(file)), SPEC, 1)


class RunsACommand:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PROOF"],)


def test_code_in_a_file_of_weights_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROOF", str(tmp_path / "proof"))
    torch.save({"state_dict": RunsACommand()}, tmp_path / "code.pth", pickle_module=pickle)
    with pytest.raises(UserError, match=r"code.pth does not fit test_resnet"):
        build_for_training(section(weights=str(tmp_path / "code.pth")), SPEC, 1)
    assert not (tmp_path / "proof").exists()
