"""Every data set with every network that takes it, your own too: exported, trained for two steps, loaded again."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHOICES, PACKAGE, SHORT, compose_config, existing
from omegaconf.errors import OmegaConfBaseException

commands = import_module(f"{PACKAGE}.engine.commands")
UserError = import_module(f"{PACKAGE}.engine").UserError
DATA, MODELS = ([choice for choice in CHOICES if choice.startswith(group)] for group in ("data=", "model="))


def build(data: str, model: str, folder: Path, needed: list[str]) -> Any:
    """A training of the pair, or a skip that says why they do not go together."""
    small = existing(("data.batch_size=16",), data, model)
    pair = (data, model, *needed, *small, "test=false", "rehearse_export=require")
    try:
        return commands.Training.build(compose_config("train", f"paths.output_dir={folder}", *SHORT, *pair))
    except (UserError, OmegaConfBaseException) as error:  # the second if a model's options name those of other data
        pytest.skip(f"not run: {model} does not take {data}, or it needs more options: {error}")


def train(training: Any, data: str, model: str) -> None:
    """Trains the pair, or skips one that does not go together."""
    try:
        with training.recorded():  # begins with the export to ONNX and TorchScript, whose files are run and compared
            training.trainer.fit(training.model, datamodule=training.datamodule)
    except Exception as error:
        if takes_spec(training):
            raise
        pytest.skip(f"not run: {model} does not take {data}: {error}")


def takes_spec(training: Any) -> bool:
    """Whether the model refuses data that it does not take when it is built, and not when it is trained."""
    return hasattr(training.model, "spec")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", DATA)
def test_pair_is_exported_trains_and_reloads(
    data: str, model: str, tmp_path: Path, needed: dict[str, list[str]]
) -> None:
    training = build(data, model, tmp_path, needed.get(data, []))
    train(training, data, model)
    assert training.trainer.global_step >= 2  # two for each optimizer
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    again = build(data, model, tmp_path, needed.get(data, [])).model
    again.load_state_dict(checkpoint["state_dict"])
    torch.testing.assert_close(dict(again.state_dict()), dict(training.model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("choice", [*DATA, *MODELS])
def test_choice_has_a_partner(choice: str, tmp_path: Path, needed: dict[str, list[str]]) -> None:
    """What no other choice goes with would be tried by none of the tests above."""
    refusals = []
    pairs = [(data, model) for data in DATA for model in MODELS if choice in (data, model)]
    for number, (data, model) in enumerate(pairs):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            training = build(data, model, folder, needed.get(data, []))
            if not takes_spec(training):
                train(training, data, model)
        except pytest.skip.Exception as skipped:
            refusals.append(str(skipped))
        else:
            return
    pytest.fail("\n".join(refusals))
