"""`benchmark`: real runs of the strategies beside the loop written by hand."""

import json
import re
from pathlib import Path

from conftest import assert_ends_by_interruption, run_command, started, wait_for

from {{ cookiecutter.package_name }}.engine.benchmark.strategies import Key, fastest, once, rows_of

QUICK = ("trainer=cpu", "model=mlp", "num_rounds=2", "num_steps=20")


def test_every_strategy_is_measured_beside_its_loop(tmp_path: Path) -> None:
    done = run_command("benchmark", *QUICK, cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs/benchmark/runs").iterdir()
    assert {path.name for path in run_dir.iterdir()} == {".hydra", "benchmark.json", "benchmark.log", "benchmark.png"}
    measured = json.loads((run_dir / "benchmark.json").read_text(encoding="utf-8"))
    rows = {(row["case"], row["num_devices"]): row for row in measured["rows"]}
    assert list(rows) == [("loop", 1), ("single", 1), ("ddp loop", 2), ("ddp", 2)]
    for row in rows.values():
        assert 0 < row["epoch_seconds"]["min"] <= row["epoch_seconds"]["median"] <= row["epoch_seconds"]["max"]
        assert row["samples_per_second"] > 0
        assert row["peak_memory_bytes"] > 0
    assert rows["single", 1]["speedup"] == 1
    assert rows["ddp", 2]["efficiency"] == rows["ddp", 2]["speedup"] / 2
    ratios = {("single", 1): ["ratio_to_loop"], ("ddp", 2): ["ratio_to_loop", "ratio_to_ddp_loop"]}
    for case, names in ratios.items():
        assert rows[case]["epoch_seconds_waiting_for_data"] > 0
        for name in names:
            low, high = rows[case][f"{name}_range"]
            assert 0 < low <= high
            assert rows[case][name] > 0
    assert list(measured["not_measured"]) == ["strategy=dp on 2"]
    assert "not measured: strategy=dp on 2: strategy=dp spreads a batch over GPUs" in done.stdout
    assert measured["machine"]["num_cores"] >= 1
    assert measured["versions"]["torch"]
    assert re.search(r"\.train strategy=\S+.* trainer=cpu model=mlp$", done.stdout, re.MULTILINE)
    assert (run_dir / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_the_figures_of_the_turns() -> None:
    def turns(*seconds: float) -> list[dict[str, float]]:
        return [{"seconds": figure, "waited": 0.5, "memory": 1.0} for figure in seconds]

    measured = {
        Key("loop", 1): turns(2.0, 4.0, 2.0),
        Key("single", 1): turns(4.0, 5.0, 8.0),
        Key("ddp loop", 2): turns(1.0, 1.0, 1.0),
        Key("ddp", 2): turns(2.0, 2.0, 4.0),
    }
    rows = {row["case"]: row for row in rows_of(measured, num_samples=100, num_epochs=2)}
    assert rows["single"]["samples_per_second"] == 25
    assert rows["single"]["epoch_seconds"] == {"min": 2.0, "median": 2.5, "max": 4.0}
    assert rows["single"]["ratio_to_loop"] == 0.5
    assert rows["single"]["ratio_to_loop_range"] == [0.25, 0.8]
    assert rows["ddp"]["speedup"] == 2
    assert rows["ddp"]["efficiency"] == 1
    assert rows["ddp"]["ratio_to_ddp_loop"] == 0.5
    assert rows["ddp"]["epoch_seconds_waiting_for_data"] == 0.25
    assert "ratio_to_loop" not in rows["loop"]
    assert fastest(list(rows.values())) == "ddp trainer.devices=2"
    again = [*rows.values(), {**rows["single"], "speedup": 7}]
    assert [row["case"] for row in once(again, with_single=True)] == ["loop", "single", "ddp loop", "ddp"]
    assert [row["case"] for row in once(again, with_single=False)] == ["loop", "ddp loop", "ddp"]


def test_interruption_ends_all_processes(tmp_path: Path) -> None:
    with started("benchmark", *QUICK[:2], "num_rounds=1000", cwd=tmp_path) as process:
        wait_for(process, "measuring")
        assert_ends_by_interruption(process)
