"""Runs in MLflow: what is in them, how one goes on, and that its server never ends one."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from {{ cookiecutter.package_name }}.engine.runs import run_record
from mlflow import MlflowClient

from conftest import run_command

TRAIN = ("train", "trainer=cpu", "model=mlp")


def test_a_run_and_what_it_goes_on_to_are_one_run(tmp_path: Path) -> None:
    run_command(*TRAIN, "trainer.max_epochs=1", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    number = run_record.read(run_dir)["trackers"]["mlflow"]
    run_command("train", "resume=latest", "trainer.max_epochs=2", cwd=tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/logs/mlflow.db")
    (experiment,) = (found for found in client.search_experiments() if found.name != "Default")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == number
    assert run.info.status == "FINISHED"
    assert {"val/loss", "train/loss", "test/acc"} <= run.data.metrics.keys()
    assert len({entry.step for entry in client.get_metric_history(number, "val/loss")}) == 2
    assert {"model/optimizer/lr", "versions/torch"} <= run.data.params.keys()


class Server(BaseHTTPRequestHandler):
    """Answers, but not as a tracking server: what lies behind a proxy that has lost it."""

    def do_GET(self) -> None:
        self.send_error(502)

    def do_POST(self) -> None:
        self.send_error(502)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_server_that_does_not_answer_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    process = run_command(*TRAIN, "logger.mlflow.tracking_uri=http://127.0.0.1:9", "trainer.max_epochs=1", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    sentence = "warning     mlflow at http://127.0.0.1:9 does not answer, and the run goes on without it"
    assert process.stdout.count(sentence) == 1
    assert run_record.read_state(run_dir) == "finished"
    assert "val/loss" in (run_dir / "metrics.csv").read_text(encoding="utf-8")


def test_server_that_fails_is_told_and_the_run_goes_on(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    process = run_command(*TRAIN, f"logger.mlflow.tracking_uri={address}", "trainer.max_epochs=1", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/train/runs").iterdir()
    assert process.stdout.count("warning     mlflow failed, and the run goes on without it") == 1
    assert run_record.read_state(run_dir) == "finished"
