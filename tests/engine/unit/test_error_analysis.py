"""The error analysis of a test: figures beside scikit-learn's, and the samples that are shown."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.metrics import multilabel_confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from {{ cookiecutter.package_name }}.engine import DataSpec, Deployed, Output
from {{ cookiecutter.package_name }}.engine.inference.signature import Column
from {{ cookiecutter.package_name }}.engine.reporting.error_analysis import ErrorAnalysis, Hardest, _cell

LABELS = ("a", "b", "$c")
COLUMNS = (
    {"name": "kind", "categories": ["x", "y"], "gaps": True},
    {"name": "year", "categories": None, "gaps": True, "offset": 2000},
)


def spec_of(task: str, shape: tuple[int, ...] = (2,), columns: tuple[Any, ...] = COLUMNS) -> DataSpec:
    labels = () if task == "regression" else LABELS
    return DataSpec("made", task, shape, "float32", (0.0, 1.0), labels, (0.0,), (1.0,), columns=columns, target="price")


class Answering(pl.LightningModule):
    """Gives the answers that it was built with, by the number of the sample in its last input."""

    def __init__(self, spec: Any, answers: Tensor, described: Deployed | None = None) -> None:
        super().__init__()
        self.spec, self.answers, self.described, self.net = spec, answers, described, nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.answers[x.flatten(1)[:, -1].long()]

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test/mean", self(batch[0]).mean())

    def deployed(self) -> Deployed:
        return self.described or Deployed()


def analysed(module: pl.LightningModule, x: Tensor, y: Tensor, folder: Path) -> ErrorAnalysis:
    analysis = ErrorAnalysis()
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(callbacks=[analysis], default_root_dir=folder, enable_model_summary=False, **options)
    trainer.test(module, DataLoader(TensorDataset(x, y), batch_size=7), verbose=False)
    return analysis


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbered(size: int) -> Tensor:
    x = torch.zeros(size, 2)
    x[:, 1] = torch.arange(size)
    return x


@pytest.mark.parametrize("are_probabilities", [False, True])
def test_figures_of_labels_are_those_of_scikit_learn(
    are_probabilities: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    torch.manual_seed(1)
    answers, y = torch.randn(50, 3), torch.randint(3, (50,))
    given = answers.softmax(dim=1) if are_probabilities else answers
    x = numbered(50)
    x[4, 0], x[5, 0] = 1.0, 2.0
    analysed(Answering(spec_of("classification"), given), x, y, tmp_path)
    chosen = answers.argmax(dim=1)
    expected = precision_recall_fscore_support(y, chosen)
    rows = rows_of(tmp_path / "labels.csv")
    assert [row["label"] for row in rows] == list(LABELS)
    for name, values in zip(("precision", "recall", "f1", "samples"), expected, strict=True):
        np.testing.assert_allclose([float(row[name]) for row in rows], values, atol=1e-4)
    pairs = {(t, c): int(((y == t) & (chosen == c)).sum()) for t in range(3) for c in range(3) if t != c}
    worst = max(pairs, key=lambda pair: pairs[pair])
    assert f"confused    {pairs[worst]} of {int((y == worst[0]).sum())} samples of '{LABELS[worst[0]]}'" in caplog.text
    wrong = [row for row in rows_of(tmp_path / "mistakes.csv") if row["kind_"] == "most wrong"]
    probabilities = answers.double().softmax(dim=1)
    surplus = torch.where(chosen != y, probabilities.amax(dim=1) - probabilities[torch.arange(50), y], -1)
    assert [int(row["year"]) - 2000 for row in wrong] == surplus.argsort(descending=True)[:12].tolist()
    assert all(row["truth"] != row["prediction"] for row in wrong)
    unsure = [row for row in rows_of(tmp_path / "mistakes.csv") if row["kind_"] == "least sure"]
    top = probabilities.topk(2, dim=1).values
    assert [int(row["year"]) - 2000 for row in unsure] == (top[:, 0] - top[:, 1]).argsort()[:12].tolist()


def test_several_labels_are_counted_each(tmp_path: Path) -> None:
    torch.manual_seed(2)
    answers, y = torch.randn(40, 3), torch.randint(2, (40, 3)).float()
    analysed(Answering(spec_of("multilabel"), answers), numbered(40), y, tmp_path)
    for row, ((_, false), (missed, right)) in zip(
        rows_of(tmp_path / "labels.csv"), multilabel_confusion_matrix(y, answers > 0), strict=True
    ):
        assert float(row["precision"]) == pytest.approx(right / (right + false), abs=1e-4)
        assert float(row["recall"]) == pytest.approx(right / (right + missed), abs=1e-4)
    assert rows_of(tmp_path / "mistakes.csv")[0]["truth"] != rows_of(tmp_path / "mistakes.csv")[0]["prediction"]


@pytest.mark.parametrize("is_standardised", [False, True])
def test_regression_is_shown_in_the_units_of_its_target(is_standardised: bool, tmp_path: Path) -> None:
    truth = torch.arange(30, dtype=torch.float64) * 10
    predicted = truth + torch.arange(30) % 5
    answers = (predicted - 100) / 20 if is_standardised else predicted
    result = (lambda outputs: (outputs["price"] - 100) / 20) if is_standardised else "price"
    described = Deployed(outputs={"price": Output(mean=(100.0,), std=(20.0,))}, result=result)
    module = Answering(spec_of("regression"), answers[:, None], described)
    analysis = analysed(module, numbered(30), truth, tmp_path)
    number = len(analysis.points)
    assert number == 30
    order = analysis.points.truth[:number].argsort()
    torch.testing.assert_close(analysis.points.predictions[:number, 0][order], predicted)
    assert (tmp_path / "predictions.png").stat().st_size > 5000
    worst = rows_of(tmp_path / "mistakes.csv")[:6]
    assert {float(row["prediction"]) - float(row["truth"]) for row in worst} == {4.0}
    assert not (tmp_path / "labels.csv").exists()


def test_pictures_are_drawn_and_rows_are_written(tmp_path: Path) -> None:
    torch.manual_seed(3)
    answers, y = torch.randn(20, 3), torch.randint(3, (20,))
    x = torch.rand(20, 3, 4, 4)
    x[:, -1, -1, -1] = torch.arange(20)
    analysed(Answering(spec_of("classification", (3, 4, 4), ()), answers), x, y, tmp_path)
    assert (tmp_path / "mistakes.png").stat().st_size > 10_000
    assert not (tmp_path / "mistakes.csv").exists()
    kind, year = map(Column.from_dict, COLUMNS)
    cells = [_cell(1.0, kind), _cell(0.0, kind), _cell(26.0, year), _cell(float("nan"), year)]
    assert cells == ["x", "", "2026", ""]


def test_only_what_is_wrong_is_among_the_most_wrong(tmp_path: Path) -> None:
    answers = torch.eye(3)[torch.arange(9) % 3] * 5
    truth = torch.arange(9) % 3
    truth[4] = 0
    analysed(Answering(spec_of("classification"), answers), numbered(9), truth, tmp_path)
    rows = rows_of(tmp_path / "mistakes.csv")
    assert [(row["year"], row["truth"], row["prediction"]) for row in rows if row["kind_"] == "most wrong"] == [
        ("2004", "a", "b")
    ]
    assert sum(row["kind_"] == "least sure" for row in rows) == 9


def test_module_that_is_not_understood_is_left_alone(tmp_path: Path) -> None:
    for spec, answers in ((None, torch.randn(9, 3)), (spec_of("classification"), torch.randn(9, 2))):
        analysed(Answering(spec, answers), numbered(9), torch.zeros(9, dtype=torch.long), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_truth_of_another_kind_is_reported_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = torch.full((9,), 7)  # no such label
    analysed(Answering(spec_of("classification"), torch.randn(9, 3)), numbered(9), truth, tmp_path)
    assert "the errors of this module are not analysed: " in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_description_of_a_regression_that_fails_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    described = Deployed(outputs={"price": Output(mean=(1.0,))}, result=lambda outputs: outputs["another"])
    module = Answering(spec_of("regression"), torch.zeros(9, 1), described)
    analysed(module, numbered(9), torch.zeros(9), tmp_path)
    assert "the errors of this module are not analysed: 'another'" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_hardest_samples_of_many_are_those_with_the_highest_scores() -> None:
    hardest = Hardest(spec_of("classification"), size=3)
    for first in range(0, 20, 4):
        places = torch.arange(first, first + 4)
        scores = torch.where(places % 2 == 0, places.float(), -torch.inf)
        hardest.add(scores, numbered(4), places, places % 3, torch.zeros(4, 3))
    assert hardest.places.tolist() == [18, 16, 14]
    assert len(hardest) == 3
