"""Failures of trackers, and the runs that they continue."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from {{ cookiecutter.package_name }}.engine.runs import run_record
from {{ cookiecutter.package_name }}.engine.training.trackers import FaultTolerantLogger, prepared_section, tracked


class Failing(CSVLogger):
    """A tracker whose connection fails after `good` calls."""

    def __init__(self, folder: Path, good: int) -> None:
        super().__init__(folder)
        self.good, self.calls = good, 0

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.calls += 1
        if self.calls > self.good:
            raise ConnectionError("the network\nis gone")


def test_first_failure_is_reported_and_ends_the_tracking(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(tmp_path, good=1)
    logger = FaultTolerantLogger(failing, "mine")
    for step in range(4):
        logger.log_metrics({"a": 1.0}, step)
    logger.finalize("success")
    assert failing.calls == 2
    assert [record.message for record in caplog.records] == [
        "warning     mine failed, and the run goes on without it: the network is gone"
    ]


@pytest.mark.parametrize("title", ["mlflow", "theirs"])
def test_server_that_does_not_answer_gets_no_logger(
    title: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert prepared_section(title, {"tracking_uri": "http://127.0.0.1:9"}, tmp_path) is None
    assert f"{title} at http://127.0.0.1:9 does not answer" in caplog.text
    assert prepared_section(title, {"tracking_uri": "sqlite:///runs.db"}, tmp_path) == {
        "tracking_uri": "sqlite:///runs.db"
    }


@pytest.mark.parametrize("address", ["http://127.0.0.1:50OO", "http://"])
def test_invalid_address_gets_no_logger(address: str, tmp_path: Path) -> None:
    assert prepared_section("mlflow", {"tracking_uri": address}, tmp_path) is None


def test_resumed_run_has_its_earlier_id(tmp_path: Path) -> None:
    run_record.write_start(tmp_path, None, {}, {"mlflow": "7", "wandb": "abc"})
    assert prepared_section("mlflow", {}, tmp_path) == {"run_id": "7"}
    assert prepared_section("wandb", {"offline": True}, tmp_path) == {"offline": True, "id": "abc"}


def test_provenance_is_logged_with_the_configuration(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    with tracked([logger], {"seed": 1}, tmp_path):
        logger.log_metrics({"a": 1.0})
        logger.save()
    text = (tmp_path / "hparams.yaml").read_text(encoding="utf-8")
    assert "seed: 1" in text
    assert "torchmetrics" in text
    assert run_record.read(tmp_path)["versions"].keys() >= {"python", "torch"}
