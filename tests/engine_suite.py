"""Puts the tests of the engine (tests/engine) into a generated project, where they run as `engine_tests/`.

python tests/engine_suite.py build/digit-classifier
"""

import json
import shutil
import sys
from pathlib import Path

from jinja2 import Environment, StrictUndefined

SUITE = Path(__file__).parent / "engine"
STORIES = Path(__file__).parents[1] / "docs/stories"
OTHER_TEMPLATE = Path(__file__).parents[1] / "docs/from-lightning-hydra-template.md"
INSTALLED = "engine_tests"

# (question, answer) -> tests of what such a project does not have.
WITHOUT = {
    ("data_kind", "images"): [
        "e2e/test_own_table.py",
        "unit/test_cells.py",
        "unit/test_regressor.py",
        "unit/test_table.py",
    ],
    ("data_kind", "tables"): [
        "e2e/test_dp.py",
        "e2e/test_endings.py",
        "e2e/test_export.py",
        "e2e/test_fine_tuning.py",
        "e2e/test_matrix.py",
        "e2e/test_own_pictures.py",
        "e2e/test_resumed_options.py",
        "matrix.py",
        "unit/test_digits.py",
        "unit/test_image_folder.py",
        "unit/test_networks.py",
        "unit/test_pictures.py",
        "unit/test_pretrained_weights.py",
    ],
    ("search", False): ["e2e/test_search.py", "unit/test_study.py"],
    ("serving", False): [
        "e2e/test_serve.py",
        "e2e/test_serving.py",
        "integration/test_deploy.py",
        "server.py",
        "unit/test_batching.py",
        "unit/test_connection.py",
        "unit/test_protocol.py",
    ],
    ("cluster", "none"): ["e2e/test_cluster.py"],
    ("vision", False): ["downloads.py", "e2e/test_vision.py", "unit/test_torchvision_datasets.py", "unit/test_timm.py"],
}
TRACKERS = ("tensorboard", "wandb", "mlflow")


def install(project: Path, answers: dict[str, object]) -> None:
    """Renders the tests for the answers that the project was generated with; `answers` holds all of them."""
    installed = project / INSTALLED
    shutil.rmtree(installed, ignore_errors=True)
    unwanted = {path for (question, answer), paths in WITHOUT.items() if answers[question] == answer for path in paths}
    unwanted |= {f"e2e/test_{name}.py" for name in TRACKERS if answers["tracking"] != name}
    jinja = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    for path in sorted(SUITE.rglob("*")):
        name = path.relative_to(SUITE).as_posix()
        if path.is_dir() or "__pycache__" in name or name in unwanted:
            continue
        target = installed / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        if "cookiecutter." in text:  # a file for every project: its package name and its conditions are filled in
            text = jinja.from_string(text).render(cookiecutter=answers)
        target.write_text(text, encoding="utf-8")
    shutil.copytree(STORIES, installed / "stories")
    shutil.copy(OTHER_TEMPLATE, installed)


if __name__ == "__main__":
    chosen = Path(sys.argv[1])
    install(chosen, json.loads((chosen / ".cruft.json").read_text(encoding="utf-8"))["context"]["cookiecutter"])
    print(f"next: cd {chosen} && .venv/bin/python -m pytest {INSTALLED}/unit")
