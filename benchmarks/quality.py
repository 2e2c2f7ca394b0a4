"""The default network beside scikit-learn's own models, on the same splits: test figures, the mean of five seeds.

In an environment of a generated project, from anywhere:

python benchmarks/quality.py digits
python benchmarks/quality.py breast_cancer wine iris diabetes     in a project for tables

A seed draws both the split and what is drawn in training. A model of scikit-learn has the training and the validation
split to learn from, as it stops by none. Classifications are compared by accuracy, regressions by R2.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import digit_classifier
import numpy as np
from digit_classifier.engine.config import CONFIG_DIRS
from digit_classifier.engine.config.command_line import compose, register_with_hydra
from digit_classifier.engine.config.hydra_versions import VERSION_BASE
from digit_classifier.engine.distributed.plan import data_section
from hydra import initialize_config_dir
from hydra.utils import instantiate
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR
from tables import at_least, print_table, say

SEEDS = range(1, 6)
BOUND = 0.01  # below the best, on the digits
OPTIONS = {
    "digits": [],
    **{name: [f"data.path={name}", "data.batch_size=32"] for name in ("breast_cancer", "wine", "iris")},
    "diabetes": ["task=regression", "data.batch_size=32"],
}
PACKAGE = digit_classifier.__name__
KINDS = ("this project", "linear", "gradient boosting", "SVM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=OPTIONS)
    names = parser.parse_args().data
    register_with_hydra()
    columns = {name: figures_of(name) for name in names}
    if "digits" in columns:
        own, best = columns["digits"]["this project"], max(columns["digits"].values())
        columns["digits"]["this project"] = at_least(own, best - BOUND, f"{own:.4f}")
    rows = [
        [kind, *(value if isinstance(value := columns[name][kind], str) else f"{value:.4f}" for name in names)]
        for kind in KINDS
    ]
    titles = [f"{name} (R2)" if name == "diabetes" else name for name in names]
    print_table(["mean of five seeds", *titles], rows)


def figures_of(name: str) -> dict[str, Any]:
    """The mean figure of each kind of model."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in SEEDS:
        of_seed = [*OPTIONS[name], f"seed={seed}", f"data.split_seed={seed}"]
        for kind, figure in {KINDS[0]: trained(of_seed), **baselines(of_seed, seed)}.items():
            found[kind].append(figure)
        say(f"{name}, seed {seed} of {len(SEEDS)}")
    return {kind: statistics.mean(figures) for kind, figures in found.items()}


def trained(options: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", PACKAGE, "train", "trainer=cpu", f"paths.log_dir={folder}", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (file,) = Path(folder).glob("train/runs/*/metrics.json")
        metrics = json.loads(file.read_text(encoding="utf-8"))
        return float(metrics["test/acc"] if "test/acc" in metrics else metrics["test/r2"])


def baselines(options: list[str], seed: int) -> dict[str, float]:
    with initialize_config_dir(str(CONFIG_DIRS[0]), **VERSION_BASE):
        config = compose("train", [*options, "paths.output_dir=."])
    data = instantiate(data_section(config["data"]), _convert_="all")
    inputs = {name: part.inputs.flatten(1).numpy() for name, part in data.samples.items()}
    truth = {name: part.labels.numpy().squeeze() for name, part in data.samples.items()}
    known = np.concatenate([inputs["train"], inputs["val"]]), np.concatenate([truth["train"], truth["val"]])
    categorical = [place for place, column in enumerate(data.spec.columns) if column["categories"] is not None]
    numeric = [place for place in range(inputs["test"].shape[1]) if place not in categorical]
    scaled = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numeric),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), categorical),
    )
    trees = {"random_state": seed, "categorical_features": categorical or None}
    if data.spec.task == "regression":
        models = (
            RidgeCV(),
            HistGradientBoostingRegressor(**trees),
            TransformedTargetRegressor(SVR(), transformer=StandardScaler()),
        )
    else:
        models = (LogisticRegression(max_iter=10_000), HistGradientBoostingClassifier(**trees), SVC())
    linear, boosting, machine = models
    ways = (make_pipeline(scaled, linear), boosting, make_pipeline(scaled, machine))
    return {
        kind: float(way.fit(*known).score(inputs["test"], truth["test"]))
        for kind, way in zip(KINDS[1:], ways, strict=True)
    }


if __name__ == "__main__":
    main()
