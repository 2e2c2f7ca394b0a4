"""Every two option files of different groups compose and build."""

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from integration.test_configs import CHOICES, composed

from digit_classifier.engine.config import CONFIG_DIRS
from digit_classifier.engine.config.habits import TRACKERS
from digit_classifier.engine.config.validation import read_options
from digit_classifier.engine.distributed.plan import make_plan
from digit_classifier.engine.errors import UserError
from digit_classifier.engine.training import build
from digit_classifier.engine.training.options import TrainOptions

NOT_INSTALLED = {f"logger={name}" for name in TRACKERS if find_spec(name) is None}
GIVEN = sorted({*CHOICES} - NOT_INSTALLED)  # a file of the owner replaces one of the engine
PAIRS = [pair for pair in itertools.combinations(GIVEN, 2) if pair[0].split("=")[0] != pair[1].split("=")[0]]
IS_FOR_TABLES = (CONFIG_DIRS[1] / "data/table.yaml").exists()
NUM_PAIRS = 190 if IS_FOR_TABLES else 171


def refusal_of(pair: tuple[str, str], folder: Path, pictures: Path) -> str:
    """Empty where the two compose and build."""
    needed = ["trainer.devices=1"]
    if "data=image_folder" in pair:
        needed += [f"data.root={pictures}", f"data.cache_dir={folder}"]
    try:
        config = composed("train", folder, *pair, *needed)
        if "trainer=gpu" in pair:
            config["trainer"]["accelerator"] = "cpu"  # no such device here: all but its name is tried
        read_options(config, TrainOptions)
        plan = make_plan(config)
        datamodule: Any = build.build_datamodule(config["data"], config["seed"])
        model = build.build_model(config["model"], datamodule.spec)
        loggers = build.build_loggers(config["logger"], folder)
        callbacks = build.build_callbacks(config["callbacks"], loggers, [], plan.split)
        build.build_trainer(plan, callbacks, loggers, folder)
        assert model.spec == datamodule.spec
    except UserError as refusal:
        return str(refusal)
    return ""


def test_every_two_options_compose_and_build(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pictures = tmp_path if IS_FOR_TABLES else request.getfixturevalue("picture_folder")
    refused = {pair: sentence for pair in PAIRS if (sentence := refusal_of(pair, tmp_path, pictures))}
    assert (len(PAIRS), refused) == (NUM_PAIRS, {})
