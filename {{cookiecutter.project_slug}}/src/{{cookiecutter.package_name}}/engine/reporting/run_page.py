"""A run's page, `report.md` in its directory: what was trained, how it went, and what to do with it."""

import time
from collections.abc import Mapping
from pathlib import Path

from ..console import duration, python, shown
from ..runs import run_record
from ..runs.provenance import commit_words
from ..training.plots import PICTURES

PACKAGE = __name__.split(".")[0]
SPLITS = ("train", "val", "test")


def write_page(run_dir: Path, metrics: Mapping[str, float], task: str, checkpoint: Path | None) -> None:
    """From what lies in the directory, and from `metrics` by their logged names."""
    parts = [f"# Run {run_dir.name}", _origin(run_dir), _options(run_dir), _figures(metrics)]
    name, shows = PICTURES[task]
    pictures = [("curves.png", "Figures of each epoch, of training and of validation"), (name, shows)]
    parts += [f"![{text}]({file})" for file, text in pictures if (run_dir / file).is_file()]
    parts.append(_next(checkpoint))
    (run_dir / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _origin(run_dir: Path) -> str:
    known = run_record.read(run_dir)
    started = known.get("started", run_record.now())
    seconds = time.time() - time.mktime(time.strptime(started, run_record.TIME))
    versions = ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items())
    return f"Started on {started}, ended after {duration(seconds)}; {commit_words(known.get('git'))}; {versions}."


def _options(run_dir: Path) -> str:
    options = run_record.differences(run_dir)
    listed = "\n".join(f"- `{option}`" for option in options)
    return f"## What differs from the defaults\n\n{listed or 'Nothing.'}"


def _figures(metrics: Mapping[str, float]) -> str:
    """A row a figure, a column a split."""
    splits = [split for split in SPLITS if any(name.startswith(f"{split}/") for name in metrics)]
    names = sorted({name.split("/", 1)[1] for name in metrics if name.split("/", 1)[0] in splits})
    rows = []
    for name in names:
        values = [metrics.get(f"{split}/{name}") for split in splits]
        rows.append(f"| {name} | " + " | ".join("" if value is None else f"{value:.4g}" for value in values) + " |")
    head = f"| | {' | '.join(splits)} |\n| --- |{' ---: |' * len(splits)}"
    told = "Of training and validation those of the last epoch, of the test those of the best checkpoint."
    return "\n".join([f"## Figures\n\n{head}", *rows, "", told])


def _next(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "## Checkpoint\n\nNone was written."
    return f"""## Checkpoint and what to do next

The best one is `checkpoints/{checkpoint.name}`; `checkpoints/last.ckpt` is of the last epoch.

```bash
{python()} -m {PACKAGE} evaluate ckpt_path={shown(checkpoint)}
{python()} -m {PACKAGE} export ckpt_path={shown(checkpoint)}
```"""
