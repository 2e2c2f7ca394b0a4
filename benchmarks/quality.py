"""The default network beside scikit-learn's own classifiers, on the same splits: test accuracy, the mean of five seeds.

In an environment of a generated project, from anywhere: python benchmarks/quality.py [options of train]

As `data.path=wine` in a project for tables. A seed draws both the split and what is drawn in training. A classifier of
scikit-learn has the training and the validation split to learn from, as it stops by none.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import digit_classifier
import numpy as np
from digit_classifier.engine.config import CONFIG_DIRS
from digit_classifier.engine.config.command_line import compose, register_with_hydra
from digit_classifier.engine.config.hydra_versions import VERSION_BASE
from digit_classifier.engine.distributed.plan import data_section
from hydra import initialize_config_dir
from hydra.utils import instantiate
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

SEEDS = range(1, 6)
PACKAGE = digit_classifier.__name__


def main() -> None:
    options = sys.argv[1:]
    register_with_hydra()
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        of_seed = [*options, f"seed={seed}", f"data.split_seed={seed}"]
        found.setdefault("this project", []).append(trained(of_seed))
        for name, accuracy in baselines(of_seed, seed).items():
            found.setdefault(name, []).append(accuracy)
        print(f"seed {seed} of {len(SEEDS)}", file=sys.stderr)
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    writer.writerow(["test accuracy", "mean", *(f"seed {seed}" for seed in SEEDS)])
    for name, accuracies in found.items():
        writer.writerow([name, f"{statistics.mean(accuracies):.4f}", *(f"{accuracy:.4f}" for accuracy in accuracies)])


def trained(options: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", PACKAGE, "train", "trainer=cpu", f"paths.log_dir={folder}", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (metrics,) = Path(folder).glob("train/runs/*/metrics.json")
        return float(json.loads(metrics.read_text(encoding="utf-8"))["test/acc"])


def baselines(options: list[str], seed: int) -> dict[str, float]:
    with initialize_config_dir(str(CONFIG_DIRS[0]), **VERSION_BASE):
        config = compose("train", [*options, "paths.output_dir=."])
    data = instantiate(data_section(config["data"]), _convert_="all")
    inputs = {name: part.inputs.flatten(1).numpy() for name, part in data.samples.items()}
    labels = {name: part.labels.numpy() for name, part in data.samples.items()}
    known = np.concatenate([inputs["train"], inputs["val"]]), np.concatenate([labels["train"], labels["val"]])
    categorical = [place for place, column in enumerate(data.spec.columns) if column["categories"] is not None]
    numeric = [place for place in range(inputs["test"].shape[1]) if place not in categorical]
    scaled = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numeric),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), categorical),
    )
    classifiers = {
        "logistic regression": make_pipeline(scaled, LogisticRegression(max_iter=10_000)),
        "gradient boosting": HistGradientBoostingClassifier(
            random_state=seed, categorical_features=categorical or None
        ),
        "SVM": make_pipeline(scaled, SVC()),
    }
    return {
        name: float(classifier.fit(*known).score(inputs["test"], labels["test"]))
        for name, classifier in classifiers.items()
    }


if __name__ == "__main__":
    main()
