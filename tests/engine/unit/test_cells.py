"""One value in several spellings, numbers as people write them, and what float32 does not hold."""

import csv
import decimal
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from {{ cookiecutter.package_name }}.engine.data.table import TableDataModule
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.inference.cells import Vocabulary, as_word, canonical
from {{ cookiecutter.package_name }}.engine.inference.numbers import decimal_of, read_number
from {{ cookiecutter.package_name }}.engine.inference.signature import Column
from {{ cookiecutter.package_name }}.engine.inference.tables import encode, parse_csv, read_table

NUM_ROWS = 60
LABELS = ["no", "yes"] * (NUM_ROWS // 2)


def saved(path: Path, columns: dict[str, Any], separator: str = ",") -> Path:
    """Writes columns as Parquet, or as CSV in which a cell is quoted where it must be."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def data_of(path: Path, **options: Any) -> TableDataModule:
    return TableDataModule(str(path), **{"target": "label", "batch_size": 8, **options})


def all_inputs(data: TableDataModule) -> torch.Tensor:
    return torch.cat([part.inputs for part in data.samples.values()])


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        (1.0, "1"), (np.float32(0.1), "0.1"), (1e15, "1000000000000000"), (123456789012345678, "123456789012345678"),
        (decimal.Decimal("1.50"), "1.5"), (-0.0, "0"), (True, "true"), (np.bool_(False), "false"),
        (" no\N{NO-BREAK SPACE}", "no"),
        ("Ko\u0308ln", "K\u00f6ln"), (b"caf\xc3\xa9", "caf\u00e9"), (None, ""), (float("nan"), ""),
    ],
)  # fmt: skip
def test_cell_has_one_form(cell: Any, word: str) -> None:
    assert as_word(cell) == word


@pytest.mark.parametrize(
    ("words", "forms"),
    [
        (["1", "1.0", "+1", "1e0", "2.50"], {"1", "2.5"}),
        (["True", "true", "1", "0"], {"true", "false"}),
        (["007", "7"], {"007", "7"}),  # as zip codes
        (["3.1", "3.10", "3.10.1"], {"3.1", "3.10", "3.10.1"}),
        (["true", "2"], {"true", "2"}),
        (["123456789012345678", "123456789012345679"], {"123456789012345678", "123456789012345679"}),
    ],
)
def test_spellings_of_one_number_are_one_category(words: list[str], forms: set[str]) -> None:
    assert set(canonical(words).values()) == forms


@pytest.mark.parametrize(
    ("known", "given", "place"),
    [
        (["1", "2"], "1.0", 0), (["1.0", "x"], "1", 0), (["false", "true"], "1", 1), (["0", "1"], "TRUE", 1),
        (["1", "2"], "true", None), (["007", "008"], "7", 0), (["007", "7"], "7", 1), (["a"], "A", None),
    ],
)  # fmt: skip
def test_word_is_found_by_its_value_if_only_one_has_it(known: list[str], given: str, place: int | None) -> None:
    assert Vocabulary(known).find(given) == place


@pytest.mark.parametrize("spelling", ["1.0", "1", "int", "float", "float32", "text", "dictionary", "decimal"])
def test_category_is_the_same_from_every_file(spelling: str, tmp_path: Path) -> None:
    codes = [1 + number % 3 for number in range(NUM_ROWS)]
    trained = data_of(
        saved(tmp_path / "a.csv", {"kind": [f"{code}.0" for code in codes], "label": LABELS}), categorical=["kind"]
    )
    assert trained.spec.columns[0]["categories"] == ["1", "2", "3"]
    columns: dict[str, Any] = {
        "1.0": [f"{code}.0" for code in codes],
        "1": codes,
        "int": pa.array(codes),
        "float": pa.array(codes, pa.float64()),
        "float32": pa.array(codes, pa.float32()),
        "text": pa.array(map(str, codes)),
        "dictionary": pa.array(map(str, codes)).dictionary_encode(),
        "decimal": pa.array(codes, pa.decimal128(5, 2)),
    }
    suffix = "csv" if spelling in ("1", "1.0") else "parquet"
    other = saved(tmp_path / f"b.{suffix}", {"kind": columns[spelling], "label": LABELS})
    spec = replace(trained.spec, fingerprint="of another file")
    assert data_of(other, trained=spec).samples["test"].inputs[:, 0].tolist() == codes


@pytest.mark.parametrize("kind", ["bool", "True", "true", "1", "1.0"])
def test_true_and_false_are_1_and_0_however_they_are_written(kind: str, tmp_path: Path) -> None:
    truths = [number % 3 == 0 for number in range(NUM_ROWS)]
    columns: dict[str, Any] = {
        "bool": pa.array(truths),
        "True": [str(truth) for truth in truths],
        "true": [str(truth).lower() for truth in truths],
        "1": [int(truth) for truth in truths],
        "1.0": [float(truth) for truth in truths],
    }
    specs = {}
    for name, cells in columns.items():
        file = saved(tmp_path / f"{name}.{'parquet' if name == 'bool' else 'csv'}", {"member": cells, "label": LABELS})
        data = data_of(file)
        specs[name] = data.spec
        assert data.spec.columns == ({"name": "member", "categories": None, "gaps": False, "boolean": True},)
    other = tmp_path / f"{kind}.{'parquet' if kind == 'bool' else 'csv'}"
    for spec in specs.values():
        trained = replace(spec, fingerprint="of another file")
        assert data_of(other, trained=trained).samples["test"].inputs[:, 0].tolist() == truths


def test_labels_of_several_spellings_are_one(tmp_path: Path) -> None:
    spaced = saved(tmp_path / "a.csv", {"x": range(NUM_ROWS), "label": ["up ", "down", " up"] * 20})
    assert data_of(spaced).spec.labels == ("down", "up")
    numbers = saved(tmp_path / "b.csv", {"x": range(NUM_ROWS), "label": ["1.0", "2", "1"] * 20})
    trained = data_of(numbers).spec
    assert trained.labels == ("1", "2")
    truths = saved(tmp_path / "c.parquet", {"x": range(NUM_ROWS), "label": [1.0, 2.0, 1.0] * 20})
    assert data_of(truths, trained=trained).samples["test"].labels.tolist() == [0, 1, 0] * 20
    octets = saved(tmp_path / "d.parquet", {"x": range(NUM_ROWS), "label": [b"up", b"down"] * 30})
    assert data_of(octets).spec.labels == ("down", "up")
    broken = saved(tmp_path / "e.parquet", {"x": range(NUM_ROWS), "label": [b"\xff", b"down"] * 30})
    with pytest.raises(UserError, match="'label' holds bytes that are no text in UTF-8"):
        data_of(broken)


def test_large_whole_numbers_stay_apart(tmp_path: Path) -> None:
    labels = [123456789012345678 + number % 3 for number in range(NUM_ROWS)]
    for name in ("a.parquet", "a.csv"):
        spec = data_of(saved(tmp_path / name, {"x": range(NUM_ROWS), "label": labels})).spec
        assert spec.labels == ("123456789012345678", "123456789012345679", "123456789012345680")
    gaps = [None if number == 1 else label for number, label in enumerate(labels)]
    spec = data_of(saved(tmp_path / "b.parquet", {"x": range(NUM_ROWS), "label": gaps})).spec
    assert len(spec.labels) == 3
    keys = saved(tmp_path / "c.parquet", {"key": labels, "label": LABELS})
    assert len(data_of(keys, categorical=["key"]).spec.columns[0]["categories"]) == 3
    targets = [123456789012345678 + number for number in range(NUM_ROWS)]
    data = data_of(saved(tmp_path / "d.parquet", {"x": range(NUM_ROWS), "label": targets}), task="regression")
    truth = torch.cat([part.labels for part in data.samples.values()])
    assert len(truth.unique()) == NUM_ROWS
    assert {int(value) + int(data.spec.target_offset) for value in truth} == set(targets)


@pytest.mark.parametrize("start", [1_764_288_000, 20_261_128, 123456789012345678, -1e12], ids=str)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_numbers_that_float32_makes_equal_are_centred_first(start: float, suffix: str, tmp_path: Path) -> None:
    when = [start + number for number in range(NUM_ROWS)]
    data = data_of(saved(tmp_path / f"a.{suffix}", {"when": when, "label": LABELS}))
    (column,) = data.spec.columns
    assert len(all_inputs(data).unique()) == NUM_ROWS
    assert {int(value) + column["offset"] for value in all_inputs(data)[:, 0].tolist()} == set(when)
    assert abs(data.spec.mean[0]) < NUM_ROWS
    row = encode(parse_csv(f"when\n{when[3]}".encode()), [Column.from_dict(column)])
    assert row.values[0, 0] == when[3] - column["offset"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_whole_numbers_that_float64_makes_equal_stay_apart(suffix: str, tmp_path: Path) -> None:
    keys = [123456789012345678 + 2 * (number % 2) for number in range(NUM_ROWS)]
    data = data_of(saved(tmp_path / f"a.{suffix}", {"key": keys, "label": LABELS}))
    assert len(all_inputs(data).unique()) == 2


def test_column_in_which_numbers_become_equal_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spread = [0.0, 1e30, *(1e6 + number / 1000 for number in range(NUM_ROWS - 2))]
    data_of(saved(tmp_path / "a.csv", {"x": spread, "y": range(NUM_ROWS), "label": LABELS}), drop=["y"])
    assert "column 'x': of 42 different numbers float32 tells" not in caplog.text, "the middle is near to the others"
    data_of(saved(tmp_path / "b.csv", {"x": [n / 1000 + n % 2 * 1e12 for n in range(NUM_ROWS)], "label": LABELS}))
    assert "column 'x': of 42 different numbers float32 tells" in caplog.text


@pytest.mark.parametrize(
    ("written", "separator", "numbers"),
    [
        (["1,5", "2,25"], ",", [1.5, 2.25]),
        (["1,5", "2"], "\t", [1.5, 2]),
        (["1.220", "976"], ";", [1220, 976]),
        (["1.220", "976"], ",", [1.22, 976]),
        (["1.220", "7.5"], ";", [1.22, 7.5]),
        (["1.220", "1500"], ";", [1.22, 1500]),
        (["1,037", "976"], ",", [1037, 976]),
        (["1,037", "12.5"], ",", [1037, 12.5]),
        (["1,037", "2,450"], ";", [1.037, 2.45]),
        (["1.234.567,8", "3"], ";", [1234567.8, 3]),
        (["1 037", "12\N{NARROW NO-BREAK SPACE}037,5"], ",", [1037, 12037.5]),
        (["1'037", "2"], ",", [1037, 2]),
        (["5%", "12.5 %", "0"], ",", [0.05, 0.125, 0]),
        (["$3.50", "-$1,037.25", "4"], ",", [3.5, -1037.25, 4]),
        (["3,50 \N{EURO SIGN}", "\N{EURO SIGN}2,25"], ";", [3.5, 2.25]),
        (["\N{MINUS SIGN}3", "4"], ",", [-3, 4]),
        (["1e3", ".5", "2."], ",", [1000, 0.5, 2]),
    ],
)
def test_numbers_are_read_as_people_write_them(written: list[str], separator: str, numbers: list[float]) -> None:
    sign = decimal_of(written, separator)
    assert [read_number(word, sign or ".") for word in written] == numbers


@pytest.mark.parametrize(
    ("written", "separator", "sentence"),
    [
        (["1.220", "2.450"], ";", "'1.220' may be 1.22 or 1220: write it without"),
        (["1,037", "2,450"], ",", "'1,037' may be 1037 or 1.037"),
        (["1.220", "1,037"], ",", "'1,037' may be 1037 or 1.037"),
        (["5%", "7"], ",", "'5%' is per cent, and '7' is not: write all with %, or none"),
        (["$5", "\N{EURO SIGN}7"], ",", "are of two currencies: convert them to one"),
    ],
)
def test_numbers_that_can_be_read_in_two_ways_are_refused(
    written: list[str], separator: str, sentence: str, tmp_path: Path
) -> None:
    cells = (written * NUM_ROWS)[:NUM_ROWS]
    file = saved(tmp_path / "a.csv", {"x": cells, "label": LABELS}, separator)
    with pytest.raises(UserError) as refused:
        data_of(file)
    assert sentence in str(refused.value)
    assert str(refused.value).startswith(f"data.path={file} cannot be used: x: ")
    if "may be" in sentence:
        assert "or say data.decimal=. or data.decimal=, in training" in str(refused.value)
        assert data_of(file, decimal=",").spec.columns[0]["decimal"] == ","


def test_other_columns_and_the_training_decide_what_a_column_leaves_open(tmp_path: Path) -> None:
    whole, text = [number % 7 for number in range(NUM_ROWS)], ["NA", "3"] * 30
    cells = {"x": ["1.220", "2.450"] * 30, "y": ["7,5", "8"] * 30, "whole": whole, "gaps": text, "label": LABELS}
    spec = data_of(saved(tmp_path / "a.csv", cells, ";")).spec
    assert [column.get("decimal") for column in spec.columns] == [",", ",", None, None]
    columns = [Column.from_dict(column) for column in spec.columns[:2]]
    assert encode(parse_csv(b"x;y\n1.220;3"), columns).values.tolist() == [[1220, 3]]
    assert encode(parse_csv(b"x,y\n12.5,3"), columns).values.tolist() == [[12.5, 3]], "one reading alone"


def test_column_of_digits_is_never_dropped(tmp_path: Path) -> None:
    times = [f"{number % 24}:{number:02}" for number in range(NUM_ROWS)]
    with pytest.raises(UserError, match=r"in the column 'x' is no number that can be read: .*data.categorical=\[x\]"):
        data_of(saved(tmp_path / "a.csv", {"x": times, "label": LABELS}))


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1"])
def test_index_of_a_table_is_left_out(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = {name: range(NUM_ROWS), "x": LABELS, "label": LABELS}
    data = data_of(saved(tmp_path / "a.csv", cells))
    assert [column["name"] for column in data.spec.columns] == ["x"]
    assert f"left out    column '{name or 'column_1'}': it is the index of the table" in caplog.text


@pytest.mark.parametrize("name", ["__index_level_0__", "customer"])
def test_index_that_parquet_names_is_left_out(name: str, tmp_path: Path) -> None:
    metadata = {"pandas": json.dumps({"index_columns": [name]})}
    table = pa.table({"x": LABELS, "label": LABELS, name: range(NUM_ROWS)}).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [column["name"] for column in data_of(tmp_path / "a.parquet").spec.columns] == ["x"]


def test_columns_without_a_name_are_dropped_by_their_position(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "x,,label,\n" + "".join(f"{number},{number % 7},{label},{number % 5}\n" for number, label in enumerate(LABELS)),
        encoding="utf-8",
    )
    with pytest.raises(UserError, match=r"column 2 of the table has no name.* data.drop=\[column_2,column_4\]"):
        data_of(tmp_path / "a.csv")
    data = data_of(tmp_path / "a.csv", drop=["column_2", "column_4"])
    assert [column["name"] for column in data.spec.columns] == ["x"]
    assert data.read_as == {"x": "numbers", "column_2": "left out", "label": "left out", "column_4": "left out"}
    (tmp_path / "b.csv").write_text(
        "x,label,\n" + "".join(f"{number},{label},\n" for number, label in enumerate(LABELS)), encoding="utf-8"
    )
    assert len(data_of(tmp_path / "b.csv").spec.columns) == 1, "a separator at the end of each line"


def test_whole_numbers_that_differ_in_every_row_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data_of(saved(tmp_path / "a.csv", {"id": range(NUM_ROWS), "x": [n % 9 for n in range(NUM_ROWS)], "label": LABELS}))
    assert "column 'id': its whole numbers differ in every row; data.drop=[id] leaves them out" in caplog.text
    assert "column 'x'" not in caplog.text


def test_index_of_any_words_is_left_out_before_it_is_read(tmp_path: Path) -> None:
    cells = {"": [*map(str, range(NUM_ROWS - 1)), "last"], "x": LABELS, "label": LABELS}
    assert [column["name"] for column in data_of(saved(tmp_path / "a.csv", cells)).spec.columns] == ["x"]


def test_values_that_training_never_saw_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = data_of(saved(tmp_path / "a.csv", {"city": ["Bonn", "Rome"] * 30, "label": LABELS})).spec
    other = saved(tmp_path / "b.csv", {"city": ["Bonn", "Oslo", "Bern"] * 20, "label": LABELS})
    data_of(other, trained=trained)
    assert "never seen  40 of 60 values of 'city' in b.csv, such as 'Oslo'" in caplog.text
    new = saved(tmp_path / "c.csv", {"city": ["Oslo", "", "Bern"] * 20, "label": LABELS})
    with pytest.raises(UserError, match="training saw none of the 40 values of 'city', such as 'Oslo', but Bonn, Rome"):
        data_of(new, trained=trained)


def test_csv_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"the\nage";note\n1;"' + "x" * 200_000 + '"\n"2\n";y\n', encoding="utf-8")
    table = read_table(tmp_path / "a.csv")
    assert list(table.cells) == ["the age", "note"]
    assert table.numbers("the age")[0].tolist() == [1, 2]
    assert (len(table.words("note")[0]), table.places) == (200_000, ["line 3", "line 4"])
