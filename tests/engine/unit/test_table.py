"""`data=table`: files of any dialect, what is known of their columns, and the network that takes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from {{ cookiecutter.package_name }}.engine.data.labels import known_labels
from {{ cookiecutter.package_name }}.engine.data.table import TableDataModule
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.inference.inputs import Sample, SkippedSample, read_samples
from {{ cookiecutter.package_name }}.engine.inference.signature import Column, Signature, TensorSignature
from {{ cookiecutter.package_name }}.engine.inference.tables import MAX_HEADER, encode, names_of, parse_csv, read_object, read_table
from {{ cookiecutter.package_name }}.engine.spec import DataSpec
from {{ cookiecutter.package_name }}.engine.training.layers import Normalize
from {{ cookiecutter.package_name }}.models.tabular import Columns, TabularMLP

COLUMNS = (Column("age", gaps=True), Column("city", ("Bonn", "Köln; Süd", 'the "old" one')))
ROW = TensorSignature("x", "float32", ("batch", 2), (-1e9, 1e9), COLUMNS)
SIGNATURE = Signature((ROW,), (TensorSignature("output", "float32", ("batch", 2)),), 64)
ROWS = [("41", "Bonn"), ("", "Köln; Süd"), ("2.5", 'the "old" one'), ("-3e2", "Rom"), ("7", "")]
CODED = np.array([[41, 1], [np.nan, 2], [2.5, 3], [-300, 0], [7, 0]], np.float32)


def written(separator: str, **changed: str) -> bytes:
    lines = [("city", "age"), *((city, age) for age, city in ROWS)]
    quoted = [separator.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    return changed.get("newline", "\n").join(quoted).encode(changed.get("encoding", "utf-8"))


@pytest.mark.parametrize(
    "contents",
    [
        written(","),
        written(";"),
        written("\t"),
        written("|", newline="\r\n"),
        written(",", encoding="utf-8-sig"),
        written(";").replace(b"2.5", b"2,5"),
        written(",") + b"\n\n",
        written(",").replace(b'"41"', b" 41 "),
        written(",").replace(b'"Bonn","41"', b'"Bonn","41"\n"Bonn","NA"').replace(b'\n"Bonn","NA"', b""),
    ],
    ids=[
        "comma",
        "semicolon",
        "tab",
        "bar and CRLF",
        "byte-order mark",
        "decimal comma",
        "empty lines",
        "spaces",
        "NA",
    ],
)
def test_csv_of_any_dialect_is_read(contents: bytes) -> None:
    encoded = encode(parse_csv(contents), COLUMNS)
    np.testing.assert_array_equal(encoded.values, CODED)
    assert encoded.reasons == {}
    assert encoded.never_seen == {"city": ["Rom"]}


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NaN", "null", "?"])
def test_word_for_a_missing_number_is_a_gap_and_no_category(word: str) -> None:
    values = encode(parse_csv(f"age,city\n{word},Bonn".encode()), COLUMNS).values
    assert np.isnan(values[0, 0])
    assert values[0, 1] == 1


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"", "its first line names no columns"),
        (b"age,city\n1,Bonn\n2\n", "line 3 has 1 cells, but the first line 2"),
        (b'age,city\n1,"Bonn\n2,x', "line 3 is no CSV: unexpected end of data"),
        (b"age,age\n1,2\n", "its first line has 2 columns that are named 'age'"),
        (b"age,,column_2\n1,2,3\n", "its first line names 'column_2', and column 2 has no name: name it"),
        (b"age,city\n\xff,Bonn\n", "it is no CSV in UTF-8 (invalid start byte at byte 9)"),
        (b"PK\x03\x04\0\0", "it is no CSV: it holds a byte 0"),
    ],
)
def test_reason_is_given_for_a_file_that_is_no_table(contents: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(contents)
    (skipped,) = read_samples(tmp_path / "a.csv", SIGNATURE)
    assert isinstance(skipped, SkippedSample)
    assert skipped.reason == sentence


def test_parquet_gives_what_its_csv_gives(tmp_path: Path) -> None:
    ages = pa.array([None if age == "" else float(age) for age, _ in ROWS])
    table = pa.table({"city": [city or None for _, city in ROWS], "age": ages, "count": [1, 2, None, 4, 5]})
    parquet.write_table(table, tmp_path / "a.parquet")
    read = read_table(tmp_path / "a.parquet")
    np.testing.assert_array_equal(encode(read, COLUMNS).values, CODED)
    assert read.words("count") == ["1", "2", "", "4", "5"]
    (tmp_path / "b.parquet").write_bytes(written(","))
    (skipped,) = read_samples(tmp_path / "b.parquet", SIGNATURE)
    assert "it is no Parquet file, or damaged" in str(skipped)


def test_row_that_cannot_be_used_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,city\n1,Bonn\nold,Bonn\n1e39,Bonn\n1_0,Bonn\n2,Bonn\n", encoding="utf-8")
    found = list(read_samples(tmp_path / "a.csv", SIGNATURE))
    assert [isinstance(sample, Sample) for sample in found] == [True, False, False, False, True]
    assert str(found[1]).endswith("[1]: line 3: age='old' is no number")
    (tmp_path / "b.csv").write_text("years,city\n1,Bonn\n", encoding="utf-8")
    (skipped,) = read_samples(tmp_path / "b.csv", SIGNATURE)
    assert str(skipped).endswith("b.csv: it has no column 'age', but years, city")


def test_object_of_json_is_a_row() -> None:
    for row in ({"age": 41, "city": "Bonn", "more": []}, {"age": "41.0", "city": "Bonn"}):
        np.testing.assert_array_equal(read_object(row, ROW).values, CODED[:1])
    np.testing.assert_array_equal(read_object({"age": None, "city": None}, ROW).values, [[np.nan, 0]])
    member = TensorSignature("x", "float32", ("batch", 1), (0, 9), (Column("member", ("false", "true")),))
    for value in (True, "true", "TRUE", 1, 1.0, "1"):
        assert read_object({"member": value}, member).values == 2
    assert read_object({"age": 1, "city": "Rom"}, ROW).never_seen == [{"city": "Rom"}]
    with pytest.raises(ValueError, match="age='true' is no number"):
        read_object({"age": True, "city": None}, ROW)
    for wrong, sentence in (({"age": 1}, "'city' is missing"), ({"age": [], "city": ""}, "'age' is neither")):
        with pytest.raises(ValueError, match=sentence):
            read_object(wrong, ROW)


def people(path: Path, num_rows: int = 200, **changed: list[str]) -> Path:
    """Who is old buys, but in Rome the young ones do; some ages and cities are missing."""
    random = np.random.default_rng(1)
    ages, cities = random.integers(18, 80, num_rows), random.choice(["Bonn", "Rome", "Oslo"], num_rows)
    cells = {
        "age": [str(age) for age in ages],
        "city": list(map(str, cities)),
        "bought": ["yes" if (age > 45) != (city == "Rome") else "no" for age, city in zip(ages, cities, strict=True)],
    }
    for place in range(0, num_rows, 20):
        cells["age"][place], cells["city"][place + 1] = "", ""
    cells |= changed
    lines = [",".join(cells), *(",".join(row) for row in zip(*cells.values(), strict=True))]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def made(path: Path, **options: Any) -> TableDataModule:
    return TableDataModule(str(path), **{"target": "bought", **options})


def test_columns_are_known_from_the_training_split_alone(tmp_path: Path) -> None:
    path = people(tmp_path / "a.csv")
    data = made(path)
    spec = data.spec
    assert (spec.input_shape, spec.input_dtype, spec.labels, spec.name) == ((2,), "float32", ("no", "yes"), "a")
    assert [column["name"] for column in spec.columns] == ["age", "city"]
    assert spec.columns[1]["categories"] == ["Bonn", "Oslo", "Rome"]
    ages = data.samples["train"].inputs[:, 0]
    assert spec.mean[0] == pytest.approx(ages[~ages.isnan()].double().mean().item())
    assert spec.std[0] == pytest.approx(ages[~ages.isnan()].double().std(correction=0).item())
    assert (spec.mean[1], spec.std[1]) == (0, 1)
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    # A category and a gap that only the test split has.
    lines = path.read_text(encoding="utf-8").splitlines()
    test_ages = data.samples["test"].inputs[:, 0]
    place = next(row for row, line in enumerate(lines) if line.split(",")[0] == f"{test_ages[0]:.0f}")
    split = ["split", *("test" if row == place else ("train", "val")[row % 2] for row in range(1, len(lines)))]
    lines[place] = ",Paris,yes"
    path.write_text("\n".join(f"{line},{word}" for line, word in zip(lines, split, strict=True)), encoding="utf-8")
    given = made(path, split="split")
    assert given.spec.columns[1]["categories"] == ["Bonn", "Oslo", "Rome"]
    assert given.samples["test"].inputs[0].isnan().tolist() == [True, False]
    assert given.samples["test"].inputs[0, 1] == 0


def test_split_is_stratified_and_stays_with_another_seed(tmp_path: Path) -> None:
    path = people(tmp_path / "a.csv", 400)
    first, second = made(path, seed=1), made(path, seed=2)
    assert {name: len(part) for name, part in first.samples.items()} == {"train": 280, "val": 40, "test": 80}
    shares = [part.labels.double().mean() for part in first.samples.values()]
    assert max(shares) - min(shares) < 0.03
    for name, part in first.samples.items():
        assert torch.equal(part.labels, second.samples[name].labels)
    assert not torch.equal(first.samples["test"].labels, made(path, split_seed=1).samples["test"].labels)


def test_another_file_is_read_as_the_one_of_the_training(tmp_path: Path) -> None:
    trained = made(people(tmp_path / "a.csv")).spec
    other = people(tmp_path / "b.csv", 40, city=["Rome", "Paris"] * 20)
    data = made(other, trained=trained)
    assert {name: len(part) for name, part in data.samples.items()} == {"train": 0, "val": 0, "test": 40}
    assert data.samples["test"].inputs[:, 1].tolist() == [3, 0] * 20
    assert (data.spec.mean, data.spec.columns, data.spec.labels) == (trained.mean, trained.columns, trained.labels)
    assert data.spec.fingerprint != trained.fingerprint
    again = made(tmp_path / "a.csv", trained=trained)
    assert again.spec == trained
    assert len(again.samples["test"]) == 40
    people(tmp_path / "c.csv", 40, bought=["perhaps"] * 40)
    with pytest.raises(UserError, match=r"line 2 of the table: bought='perhaps' is no label of the training split"):
        made(tmp_path / "c.csv", trained=trained)
    (tmp_path / "d.csv").write_text("bought,city\nyes,Rome\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"data.path=.*d.csv cannot be used: it has no column 'age', but bought, city"):
        made(tmp_path / "d.csv", trained=trained)
    (tmp_path / "d.csv").write_text("bought,city,age\nyes,Rome,old\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"data.path=.*d.csv cannot be used, line 2: age='old' is no number"):
        made(tmp_path / "d.csv", trained=trained)


def test_labels_are_in_one_order_whatever_they_are() -> None:
    numbers = list(map(str, range(50)))
    assert known_labels(reversed([*numbers, "1.5"]), several=False) == [*numbers[:2], "1.5", *numbers[2:]]
    for other in ("nan", "inf", "old"):
        assert known_labels([*numbers, other], several=False) == sorted([*numbers, other])


def test_rows_without_a_target_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = people(tmp_path / "a.csv", 40, bought=["", *["yes", "no"] * 19, ""])
    assert sum(map(len, made(path, batch_size=8).samples.values())) == 38
    assert "left out    2 of 40 rows without 'bought': line 2, line 41" in caplog.text


@pytest.mark.parametrize(
    ("changed", "options", "sentence"),
    [
        ({}, {"target": None}, "data.target= is needed: .*a.csv has the columns age, city, bought."),
        ({}, {"target": "bough"}, r"data.target=bough is no column of .*a.csv; did you mean 'bought'\?"),
        ({}, {"drop": ["ag"]}, r"data.drop=\[ag\] is no column of the table; did you mean 'age'\?"),
        ({}, {"split": "part"}, "data.split=part is no column"),
        ({}, {"split": "city"}, "line 2 of the table: city='[A-Z][a-z]+' is none of train, val, test."),
        ({}, {"drop": ["age", "city"]}, "no column is left to learn from"),
        ({}, {"batch_size": 500}, "the largest size that works is 140"),
        ({"bought": ["yes"] * 200}, {}, "data.target=bought holds one label, 'yes'"),
        ({"bought": list(map(str, range(200)))}, {}, "data.target=bought has 200 labels in 200 rows"),
        ({"bought": ["maybe"] * 4 + ["yes", "no"] * 98}, {}, "the label 'maybe' has 4 samples, too few to split"),
        ({"age": [*["3"] * 199, "old"]}, {}, r"line 201 .*: age='old' is no number, .*data.categorical=\[age\]"),
        ({"city": list(map(hex, range(200)))}, {}, r"the same text in city, .* leave it out as data.drop=\[city\]"),
    ],
)
def test_table_that_cannot_be_learned_from_is_refused(
    changed: dict[str, list[str]], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = people(tmp_path / "a.csv", **changed)
    with pytest.raises(UserError, match=sentence) as refused:
        made(path, **options).train_dataloader()
    assert "\n" not in str(refused.value)


def test_column_without_a_number_in_training_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = made(people(tmp_path / "a.csv", empty=["NA"] * 200))
    assert data.spec.input_shape == (2,)
    assert "left out    column 'empty': it is empty in the training split" in caplog.text


def test_numbers_are_names_where_that_is_said(tmp_path: Path) -> None:
    data = made(people(tmp_path / "a.csv", zip=[str(number % 12) for number in range(200)]), categorical=["zip"])
    assert data.spec.columns[2]["categories"] == [str(number) for number in range(12)]


@pytest.mark.parametrize(("name", "num_labels"), [("breast_cancer", 2), ("iris", 3), ("wine", 3)])
def test_bundled_tables_need_no_file(name: str, num_labels: int) -> None:
    spec = TableDataModule(name, batch_size=32).spec
    assert (spec.name, spec.num_outputs) == (name, num_labels)


def test_missing_file_names_the_bundled_tables() -> None:
    with pytest.raises(
        UserError, match=r"data.path=nowhere.csv does not exist: give a CSV .* breast_cancer, iris, wine or diabetes"
    ):
        TableDataModule("nowhere.csv")


def test_target_may_be_a_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prices = [f"{number * 10 + 5:.1f}" for number in range(200)]
    prices[3] = "NA"
    path = people(tmp_path / "a.csv", bought=prices)
    spec = made(path, task="regression").spec
    assert (spec.task, spec.labels, spec.target, spec.num_outputs) == ("regression", (), "bought", 1)
    truth = made(path, task="regression").samples["train"].labels
    assert (truth.dtype, truth.shape) == (torch.float32, (139,))
    assert spec.target_mean == pytest.approx(truth.double().mean().item())
    assert spec.target_std == pytest.approx(truth.double().std(correction=0).item())
    assert "left out    1 of 200 rows without 'bought': line 5" in caplog.text
    for wrong, sentence in (
        (
            [*prices[:9], "dear", *prices[10:]],
            r"line 11 of the table: bought='dear' is no number: mend it, or empty it",
        ),
        (["7"] * 200, "data.target=bought is the same in all training rows"),
    ):
        with pytest.raises(UserError, match=sentence):
            made(people(tmp_path / "b.csv", bought=wrong), task="regression")


def test_row_may_have_any_number_of_labels(tmp_path: Path) -> None:
    tags = ["|".join(tag for tag, has in (("b", row % 2), ("a", row % 3 == 0)) if has) for row in range(200)]
    data = made(people(tmp_path / "a.csv", bought=tags), task="multilabel")
    assert data.spec.labels == ("a", "b")
    assert sum(map(len, data.samples.values())) == 200, "those without a label too"
    truth = data.samples["train"].labels
    assert data.spec.label_counts == tuple(truth.sum(0).tolist())
    shares = [part.labels.double().mean(0) for part in data.samples.values()]
    assert max(float((share - shares[0]).abs().max()) for share in shares) < 0.12
    tags[7] = "a|rare"
    with pytest.raises(UserError, match="the label 'rare' has 1 samples, too few to split"):
        made(people(tmp_path / "b.csv", bought=tags), task="multilabel")


def spec_of(columns: tuple[Column, ...]) -> DataSpec:
    number = len(columns)
    described = tuple(column.to_dict() for column in columns)
    bounds = (-1e9, 1e9)
    return DataSpec(
        "made", "classification", (number,), "float32", bounds, ("a", "b"), (2.0,) * number, (2.0,) * number,
        columns=described,
    )  # fmt: skip


def test_gaps_and_categories_become_features() -> None:
    columns = Columns(spec_of(COLUMNS))
    assert columns.num_features == 1 + 1 + 2
    features = columns(torch.tensor([[1.5, 2.0], [torch.nan, 0.0], [3.0, 99.0], [3.0, -1.0], [3.0, torch.nan]]))
    assert features[:, 0].tolist() == [1.5, 0, 3, 3, 3]
    assert features[:, 1].tolist() == [0, 1, 0, 0, 0]
    assert torch.equal(features[0, 2:], columns.embeddings[0].weight[2])
    assert not features[1:, 2:].any(), "what was never seen begins as zeros"


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[:1], COLUMNS[1:], (Column("age"),)])
def test_network_takes_any_kind_of_columns_and_stays_the_same_when_checkpointed(columns: tuple[Column, ...]) -> None:
    spec, found = spec_of(columns), {}
    rows = torch.tensor([[1.0] * len(columns), [torch.nan] * len(columns), [3.0] * len(columns)])
    for num_segments in (0, 2):
        torch.manual_seed(3)
        net = TabularMLP(spec, widths=[8, 8], dropout=0.5, checkpoint_segments=num_segments)
        net(Normalize(spec)(rows)).square().sum().backward()
        found[num_segments] = {name: weight.grad for name, weight in net.named_parameters()}
    assert all(torch.equal(found[2][name], found[0][name]) for name in found[0])
    assert all(gradient.isfinite().all() for gradient in found[0].values() if gradient is not None)


def test_array_of_rows_may_have_gaps(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, np.nan], [np.nan, np.nan], [2e9, 1]], np.float32))
    found = list(read_samples(tmp_path / "a.npy", SIGNATURE))
    assert [isinstance(sample, Sample) for sample in found] == [True, True, False]


def test_numpys_strings_are_no_labels() -> None:
    with pytest.raises(TypeError, match="must be of Python's own str"):
        DataSpec("made", "classification", (1,), "float32", (0.0, 1.0), (np.str_("a"),), (0.0,), (1.0,))


def test_names_of_columns_are_read_from_the_beginning_of_a_file(tmp_path: Path) -> None:
    for name, contents, names in (
        ("a.csv", b"a;b c\n1;2\n", ["a", "b c"]),
        ("quoted.csv", b'"a\nb",c\n1,2\n', ["a b", "c"]),
        ("nameless.tsv", b"\tb\n1\t2\n", ["column_1", "b"]),
        ("long.csv", b"a,b\n" + b"1,2\n" * MAX_HEADER, ["a", "b"]),
        ("cut.csv", "ä,b\n".encode() + b"x" * (MAX_HEADER - 6) + "ä".encode(), ["ä", "b"]),
    ):
        (tmp_path / name).write_bytes(contents)
        assert names_of(tmp_path / name) == names
        if name != "cut.csv":
            assert list(read_table(tmp_path / name).cells) == names
    parquet.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "a.parquet")
    assert names_of(tmp_path / "a.parquet") == ["a", "b"]
    for contents in (b"\xff\xfe\n", b"a,b" * MAX_HEADER, b"a\0,b\n1,2\n"):
        (tmp_path / "bad.csv").write_bytes(contents)
        with pytest.raises(ValueError, match=r"."):
            names_of(tmp_path / "bad.csv")
