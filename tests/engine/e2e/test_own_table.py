"""A table of one's own, from the first command to predictions by the exported bundle."""

import csv
import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import EXACT, TWO_PROCESSES, assert_same_result, run_command, trained
from pyarrow import parquet

TABLE = ("data.path=people.csv", "data.target=bought", "data.drop=[id]", "data.batch_size=32")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `people.csv`: semicolons, decimal commas, a byte-order mark, gaps and quotes."""
    folder, draw = tmp_path_factory.mktemp("own"), random.Random(1)
    with (folder / "people.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["id", "age", "income", "city", "bought"])
        for number in range(400):
            age, city = draw.randint(18, 80), draw.choice(["Bonn", "Köln; Süd", 'the "old" one'])
            income = f"{draw.gauss(30_000, 8_000):.2f}".replace(".", ",")
            bought = "yes" if (age > 45) != (city == "Bonn") else "no"
            writer.writerow([number, "" if number % 20 == 0 else age, income, "" if number % 33 == 0 else city, bought])
    return folder


@pytest.fixture(scope="module")
def of_own_table(place: Path) -> Path:
    return trained(place, *TABLE, "trainer=cpu", "trainer.max_epochs=30")


def test_table_becomes_a_bundle_that_predicts(of_own_table: Path, place: Path, tmp_path: Path) -> None:
    checkpoint = of_own_table / "checkpoints/best.ckpt"
    assert "test/acc" in run_command("evaluate", f"ckpt_path={checkpoint}", cwd=tmp_path).stdout
    formats = "formats=[onnx,torchscript,onnx_fp16]"
    run_command("export", f"ckpt_path={checkpoint}", formats, "export.max_metric_loss=0.05", cwd=tmp_path)
    card = (tmp_path / "artifacts").glob("*/1/README.md").__next__().read_text(encoding="utf-8")
    assert '| 2 | city | one of `Bonn`, `Köln; Süd`, `the "old" one` | yes |' in card
    found = {}
    for model in ("bundle=latest", f"ckpt_path={checkpoint}"):
        run_command("predict", f"input={place / 'people.csv'}", model, "output=found.csv", cwd=tmp_path)
        with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
            found[model] = list(csv.DictReader(file))
    with (place / "people.csv").open(encoding="utf-8-sig", newline="") as file:
        truth = [row["bought"] for row in csv.DictReader(file, delimiter=";")]
    probable = ("output=found.parquet", "probabilities=true")
    run_command("predict", f"input={place / 'people.csv'}", "bundle=latest", *probable, cwd=tmp_path)
    as_parquet = parquet.read_table(tmp_path / "found.parquet")
    assert as_parquet.column_names == ["index", "label", "probability", "probability_no", "probability_yes"]
    assert as_parquet["label"].to_pylist() == [row["label"] for row in found["bundle=latest"]]
    assert as_parquet["probability"].to_pylist() == [float(row["probability"]) for row in found["bundle=latest"]]
    for rows in found.values():
        assert sum(row["label"] == right for row, right in zip(rows, truth, strict=True)) > 340


def test_changed_table_is_refused_and_another_one_is_for_the_test(
    of_own_table: Path, place: Path, tmp_path: Path
) -> None:
    checkpoint, table = of_own_table / "checkpoints/best.ckpt", place / "people.csv"
    whole = table.read_bytes()
    (tmp_path / "other.csv").write_bytes(whole)
    try:
        table.write_bytes(whole + b"400;50;1,0;Bonn;no\r\n")
        refused = run_command("evaluate", f"ckpt_path={checkpoint}", cwd=tmp_path, check=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: the files of data.path are others than in training")
    finally:
        table.write_bytes(whole)
    (tmp_path / "other.csv").write_bytes(whole + b"400;50;1,0;Bonn;no\r\n")
    other = (f"ckpt_path={checkpoint}", "data.path=other.csv")
    assert "test/acc" in run_command("evaluate", *other, cwd=tmp_path).stdout
    refused = run_command("export", *other, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "export takes the data of the training" in refused.stderr


def test_missing_column_gets_one_sentence(place: Path) -> None:
    refused = run_command("train", *TABLE, "data.target=bough", "trainer=cpu", cwd=place, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "data.target=bough is no column of people.csv; did you mean" in refused.stderr


@pytest.mark.parametrize(
    ("options", "score", "pictures", "told"),
    [
        (("task=regression", "data.target=income"), "r2", ["predictions.png"], "prediction"),
        (("task=multilabel", "data.target=city"), "f1", ["confusion_matrix.png"], "labels"),
    ],
    ids=["regression", "multilabel"],
)
def test_other_tasks_are_exported_and_told(
    place: Path, tmp_path: Path, options: tuple[str, ...], score: str, pictures: list[str], told: str
) -> None:
    """The city is one label of three here, but each is told for itself."""
    data = ("data.path=people.csv", "data.drop=[id]", "data.batch_size=32", "trainer=cpu", "trainer.max_epochs=3")
    shutil.copy(place / "people.csv", tmp_path)
    printed = run_command("train", *data, *options, cwd=tmp_path).stdout
    assert re.search(rf"^ *{score}( +-?[\d.]+){{2,}} *$", printed, re.MULTILINE)
    run_command("evaluate", "trainer=cpu", cwd=tmp_path)
    assert [path.name for path in tmp_path.glob("logs/evaluate/runs/*/*.png")] == pictures
    run_command("export", "formats=[onnx,torchscript,safetensors]", cwd=tmp_path)
    run_command("verify", "trust=true", cwd=tmp_path)
    card = next(tmp_path.glob("artifacts/*/1/README.md")).read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+\.png)\)", card) == [name for name in pictures if name != "predictions.png"]
    found = []
    for model in ("bundle=latest", "ckpt_path=latest"):
        run_command("predict", "input=people.csv", model, "output=found.csv", cwd=tmp_path)
        with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
            found.append([row[told] for row in csv.DictReader(file)])
    assert len(found[0]) == 400
    if told == "prediction":
        assert [float(one) for one in found[0]] == pytest.approx([float(other) for other in found[1]], rel=1e-4)
    else:
        assert found[0] == found[1]


def test_strategies_agree_on_a_regression(place: Path, tmp_path: Path) -> None:
    options = (
        "task=regression",
        "data.target=income",
        f"data.path={place / 'people.csv'}",
        "data.batch_size=32",
        *EXACT,
    )
    runs = {name: tmp_path / name for name in ("single", "ddp")}
    for run in runs.values():
        run.mkdir()
    ddp = trained(runs["ddp"], *options, *TWO_PROCESSES, "data.micro_batch_size=8")
    assert_same_result(ddp, trained(runs["single"], *options))


def test_network_goes_on_to_another_target_of_the_same_columns(of_own_table: Path, place: Path, tmp_path: Path) -> None:
    """Only the last layer is new; a table of other columns is refused."""
    weights = f"weights={of_own_table / 'checkpoints/best.ckpt'}"
    data = (f"data.path={place / 'people.csv'}", "data.target=bought", "data.batch_size=32", "trainer=cpu")
    refused = run_command("train", *data, weights, cwd=tmp_path, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "was trained on other columns or categories" in refused.stderr
    printed = run_command("train", *data, weights, "data.drop=[id]", "trainer.max_epochs=1", cwd=tmp_path).stdout
    assert "starts from" in printed


def test_table_in_other_spellings_gets_the_same_predictions(tmp_path: Path) -> None:
    """Seconds since 1970, truths, categories that are numbers: trained from CSV, asked in Parquet and other CSVs."""
    draw, rows = random.Random(2), []
    for _ in range(300):
        member, kind, when = draw.random() < 0.5, draw.randint(1, 3), 1_764_288_000 + draw.randint(0, 117)
        label = "late" if when % 118 > 60 else "early"
        rows.append({"member": member, "kind": kind, "when": when, "delay": when - 288_000, "label": label})
    written = {
        "trained.csv": [{**row, "kind": f"{row['kind']}.0", "label": f"{row['label']} "} for row in rows],
        "other.csv": [{**row, "member": int(row["member"]), "when": f"{row['when']}.0"} for row in rows],
    }
    for name, contents in written.items():
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(contents[0]))
            writer.writeheader()
            writer.writerows(contents)
    table = pa.Table.from_pylist([{**row, "kind": float(row["kind"])} for row in rows])
    parquet.write_table(table, tmp_path / "other.parquet")
    options = ("data.path=trained.csv", "data.categorical=[kind]", "trainer=cpu", "trainer.max_epochs=30")
    trained(tmp_path, *options, "data.target=label", "data.drop=[delay]")
    for name in ("other.csv", "other.parquet"):
        printed = run_command("evaluate", "trainer=cpu", f"data.path={name}", cwd=tmp_path).stdout
        assert float(re.search(r"test/acc +([0-9.]+)", printed)[1]) > 0.95  # type: ignore[index]
    run_command("export", cwd=tmp_path)
    answers = []
    for name in ("trained.csv", "other.csv", "other.parquet"):
        printed = run_command("predict", f"input={name}", "bundle=latest", "output=found.csv", cwd=tmp_path)
        assert "never seen" not in printed.stdout + printed.stderr
        answers.append((tmp_path / "found.csv").read_text(encoding="utf-8").replace(name, ""))
    assert answers[0] == answers[1] == answers[2]
    run_command("train", *options, "data.target=delay", "data.drop=[label]", "task=regression", cwd=tmp_path)
    run_command("export", cwd=tmp_path)
    for model in ("bundle=latest", "ckpt_path=latest"):
        run_command("predict", "input=other.parquet", model, "output=found.csv", cwd=tmp_path)
        with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
            found = [float(row["prediction"]) for row in csv.DictReader(file)]
        errors = [value - row["delay"] for value, row in zip(found, rows, strict=True)]
        assert sum(error**2 for error in errors) / len(errors) < 15**2, "float32 would give one value for all of them"
