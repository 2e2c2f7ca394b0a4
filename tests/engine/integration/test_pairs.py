"""Every data set with every network that takes it, your own too: trained for two steps, exported, built again."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
{% if cookiecutter.vision %}
from downloads import write_mnist
{% endif %}
from sources import source_of
from test_configs import CHOICES, composed

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.export.formats import exporter
from {{ cookiecutter.package_name }}.engine.export.network import Call, deployed, eager
from {{ cookiecutter.package_name }}.engine.inference.runtime import difference
from {{ cookiecutter.package_name }}.engine.training import build

DATA, MODELS = ([choice for choice in CHOICES if choice.startswith(group)] for group in ("data=", "model="))
FORMATS = {"onnx": "model.onnx", "torchscript": "model.pt"}


{% if cookiecutter.data_kind == "images" %}
@pytest.fixture
def needed(picture_folder: Path, tmp_path: Path) -> dict[str, list[str]]:
    """What a data set must be told; add to it what yours cannot do without."""
{% if cookiecutter.vision %}
    write_mnist(tmp_path)
{% endif %}
    return {
        "data=image_folder": [f"data.root={picture_folder}", f"data.cache_dir={tmp_path}", "data.size=[32,32]"],
{% if cookiecutter.vision %}
        "data=torchvision": [f"data.root={tmp_path}"],
{% endif %}
    }
{% else %}
@pytest.fixture
def needed() -> dict[str, list[str]]:
    """What a data set must be told; add to it what yours cannot do without."""
    return {}
{% endif %}


def pair(data: str, model: str, folder: Path, needed: list[str]) -> tuple[Any, Any]:
    """The data and the network, or a skip that says why they do not go together."""
    config = composed("train", folder, data, model, *needed, "data.batch_size=16")
    try:
        datamodule: Any = build.build_datamodule(config["data"], config["seed"])
    except UserError as refusal:
        pytest.skip(f"not run: {data} needs more than its options say: {refusal}")
    try:
        return datamodule, build.build_model(config["model"], datamodule.spec)
    except UserError as refusal:
        pytest.skip(f"not run: {model} does not take {data}: {refusal}")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", DATA)
def test_pair_trains_and_is_exported_as_it_was_trained(
    data: str, model: str, tmp_path: Path, needed: dict[str, list[str]]
) -> None:
    datamodule, network = pair(data, model, tmp_path, needed.get(data, []))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(network, datamodule=datamodule)
    assert trainer.global_step == 2
    inputs, _ = next(iter(datamodule.test_dataloader()))
    source = source_of(network, [{"x": inputs}])
    arrays = {"x": inputs.numpy()}
    expected = eager(source.network)(arrays)
    for name, file in FORMATS.items():
        path = tmp_path / file
        path.write_bytes(exporter(name).export(source))
        exporter(name).check(path, source.contract)
        for output, found in exporter(name).load(path)(arrays).items():
            assert difference(found, expected[output]) <= 1e-4
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    _, again = pair(data, model, tmp_path, needed.get(data, []))
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for output, found in eager(deployed(again, Call(("x",))))(arrays).items():
        assert difference(found, expected[output]) <= 1e-6


def test_each_has_a_partner(tmp_path: Path, needed: dict[str, list[str]]) -> None:
    """Networks are held to the data that comes with the project, data sets to its networks."""
    met = set()
    for data in DATA:
        for model in MODELS:
            try:
                pair(data, model, tmp_path, needed.get(data, []))
            except pytest.skip.Exception:
                continue
            met |= {data, model}
    assert met == {*DATA, *MODELS}
