"""`benchmark`: ordinary runs of the strategies side by side."""

import json
import re
from pathlib import Path

import pytest
from conftest import assert_ends_by_interruption, run_command, started, wait_for

from {{ cookiecutter.package_name }}.engine.benchmark import training
from {{ cookiecutter.package_name }}.engine.benchmark.benchmark import Options
from {{ cookiecutter.package_name }}.engine.benchmark.training import BASELINE, Case, to_rows
from {{ cookiecutter.package_name }}.engine.errors import UserError

SHORT = ("trainer=cpu", "model=mlp", "trainer.max_epochs=2")


def test_strategies_are_measured_side_by_side(tmp_path: Path) -> None:
    options = ("strategies=[ddp]", "devices=[1,2]", "num_rounds=1", "seed=7")
    done = run_command("benchmark", *options, *SHORT, cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/benchmark/runs").iterdir()
    assert {path.name for path in run_dir.iterdir()} == {".hydra", "benchmark.json", "benchmark.log", "benchmark.png"}
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["benchmark"], "the measured runs are left"
    measured = json.loads((run_dir / "benchmark.json").read_text(encoding="utf-8"))
    single, ddp = measured["rows"]
    assert (single["strategy"], single["num_devices"], ddp["strategy"], ddp["num_devices"]) == ("single", 1, "ddp", 2)
    assert single["speedup"] == single["efficiency"] == 1
    assert ddp["efficiency"] == ddp["speedup"] / 2
    for row in (single, ddp):
        assert row["epoch_seconds"] > 0
        low, high = row["samples_per_second_range"]
        assert 0 < low <= row["samples_per_second"] <= high
        assert row["peak_memory_mib"] > 100
    assert measured["not_measured"] == {"strategy=ddp on 1": "on one device it is strategy=single."}
    assert "not measured: strategy=ddp on 1: on one device it is strategy=single." in done.stdout
    assert measured["machine"]["num_cores"] >= 1
    assert measured["versions"]["torch"]
    next_command = r" train strategy=\S+ trainer.devices=\d seed=7 trainer=cpu model=mlp trainer.max_epochs=2$"
    assert re.search(next_command, done.stdout, re.MULTILINE)
    assert (run_dir / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def runs(*epochs: float) -> list[dict[str, object]]:
    return [{"epoch_seconds": [99.0, seconds], "steps_per_epoch": 10, "peak_memory_mib": seconds} for seconds in epochs]


def test_case_that_cannot_run_is_named_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def run_training(case: Case) -> dict[str, object]:
        tried.append(case)
        if case.strategy == "dp":
            raise UserError("strategy=dp spreads a batch over GPUs")
        return runs(2.0)[0]

    monkeypatch.setattr(training, "run_training", run_training)
    monkeypatch.setattr(training, "given_options", lambda *sections: "")
    monkeypatch.setattr(training, "given_options_except", lambda *sections: [])
    options = Options(["dp", "ddp"], None, None, False, None, 1, None, 0.5, num_rounds=2)
    trainer = {"accelerator": "cpu", "precision": "32-true"}
    model = {"net": {"_target_": "networks.MLP"}}
    config = {"trainer": trainer, "data": {"batch_size": 5}, "model": model, "resume": None}
    training.measure_training(config, options, tmp_path)
    measured = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert measured["not_measured"] == {"strategy=dp on 2": "strategy=dp spreads a batch over GPUs"}
    assert [row["strategy"] for row in measured["rows"]] == ["single", "ddp"]
    assert tried == [BASELINE, ("dp", 2), ("ddp", 2), BASELINE, ("ddp", 2)]


def test_rows_are_the_figures_of_the_rounds() -> None:
    single, ddp = to_rows({BASELINE: runs(4.0, 5.0, 8.0), Case("ddp", 2): runs(2.0, 5.0, 2.0)}, batch_size=5)
    assert single["epoch_seconds"] == 5
    assert single["samples_per_second"] == 10
    assert ddp["samples_per_second_range"] == [10, 25]
    assert ddp["peak_memory_mib"] == 5
    assert ddp["speedup"] == 2
    assert ddp["speedup_range"] == [1, 4]
    assert ddp["efficiency"] == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["trainer.max_epochs=1"], "trainer.max_epochs=2 or more is needed"),
        (["model.optimizer.lr=-1"], "model.scheduler refuses a value"),
    ],
)
def test_training_that_cannot_be_measured_is_refused(options: list[str], sentence: str, tmp_path: Path) -> None:
    refused = run_command("benchmark", "strategies=[single]", *SHORT, *options, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_interruption_ends_all_processes(tmp_path: Path) -> None:
    with started("benchmark", *SHORT, "num_rounds=1000", cwd=tmp_path) as process:
        wait_for(process, "measuring")
        assert_ends_by_interruption(process)
