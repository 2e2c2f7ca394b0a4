"""The runs of `train`: a table of them, two compared, old ones removed.

python -m <package> runs
python -m <package> runs compare=[2026-11-27_09-30-00,latest]
python -m <package> runs remove=[2026-11-27_09-30-00]
"""

import csv
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from rich import box
from rich.table import Table

from ..config.command_line import Config
from ..config.validation import read_options
from ..console import shown, wide_console
from ..errors import UserError, nearest
from ..inference.runtime import MANIFEST, digest
from ..runs import run_record
from ..runs.run_record import commit_words

log = logging.getLogger(__name__)

DAY, STARTUP = 24 * 3600, 60  # seconds
GOING = "it is still going"
IGNORED_OPTIONS = ("paths.", "tags")  # differ between any two runs, or say nothing of their results


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/runs.yaml`."""

    compare: list[str] | None
    remove: list[str] | None
    remove_older_than: float | None

    def __post_init__(self) -> None:
        if self.compare is not None and len(self.compare) != 2:
            raise UserError(f"compare={self.compare} names {len(self.compare)} runs: give two.")
        if self.remove_older_than is not None and self.remove_older_than < 0:
            raise UserError(f"remove_older_than={self.remove_older_than} is no number of days: give 0 or more.")


@dataclass(frozen=True)
class Run:
    """A run directory. `name` is the end of its path: a time, or the time of a sweep and a number."""

    name: str
    folder: Path

    @property
    def started(self) -> str:
        written = time.localtime((self.folder / ".hydra").stat().st_mtime)
        return str(run_record.read(self.folder).get("started", time.strftime(run_record.TIME_FORMAT, written)))

    def config(self) -> dict[str, Any]:
        plain = OmegaConf.to_container(OmegaConf.load(self.folder / ".hydra/config.yaml"))
        return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}

    def metrics(self) -> dict[str, float]:
        """Returns the figures of the end of the run; none before it."""
        try:
            figures: dict[str, float] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return figures

    def best(self) -> tuple[str, float] | None:
        """Returns the name and, so far, the best value of the figure by which the best checkpoint is chosen."""
        chosen = (self.config().get("callbacks") or {}).get("best") or {}
        monitor, mode = chosen.get("monitor", "val/loss"), max if chosen.get("mode") == "max" else min
        try:
            with (self.folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
                values = [float(row[monitor]) for row in csv.DictReader(file) if row.get(monitor)]
        except (OSError, ValueError):
            return None
        return (monitor, mode(values)) if values else None


def main(config: Config) -> None:
    options = read_options(config, Options)
    log_dir, artifact_dir = Path(config["paths"]["log_dir"]), Path(config["paths"]["artifact_dir"])
    runs = find(log_dir)
    if options.compare is not None:
        print_comparison(*(find_one(name, runs) for name in options.compare))
    elif options.remove is not None or options.remove_older_than is not None:
        chosen = [find_one(name, runs) for name in options.remove or []]
        remove(chosen, older_than(options.remove_older_than, runs), artifact_dir)
    elif not runs:
        log.info("There is no run under %s yet.", log_dir / "train")
    else:
        print_runs(runs)


def find(log_dir: Path) -> list[Run]:
    """Returns all runs, the oldest first; the jobs of a sweep are named `<sweep>/<number>`."""
    folders = [folder for folder in run_record.run_dirs(log_dir) if (folder / ".hydra/config.yaml").is_file()]
    runs = [Run("/".join(folder.relative_to(log_dir / "train").parts[1:]), folder) for folder in folders]
    return sorted(runs, key=lambda run: (run.started, run.name))


def find_one(name: str, runs: list[Run]) -> Run:
    """Returns the run of this name in the table or of this directory, or the `latest`."""
    if name == "latest" and runs:
        return runs[-1]
    for run in runs:
        if name == run.name or Path(name).resolve() == run.folder.resolve():
            return run
    raise UserError(f"'{name}' is no run; {nearest(name, [run.name for run in runs])}")


def older_than(days: float | None, runs: list[Run]) -> list[Run]:
    if days is None:
        return []
    limit = time.strftime(run_record.TIME_FORMAT, time.localtime(time.time() - days * DAY))
    return [run for run in runs if run.started < limit]


def remove(chosen: list[Run], others: list[Run], artifact_dir: Path) -> None:
    """Removes runs. One in use is refused among `chosen`, before any is removed, and left out among `others`."""
    for run in chosen:
        going = run_record.is_locked(run.folder / run_record.LOCK)
        if reason := GOING if going else reason_in_use(run, artifact_dir):
            raise UserError(f"'{run.name}' is kept: {reason}; nothing was removed.")
    for run in {run.name: run for run in (*chosen, *others)}.values():
        try:
            with FileLock(run.folder / run_record.LOCK, timeout=0):  # it could go on meanwhile
                reason = reason_in_use(run, artifact_dir)
                if reason is None:
                    shutil.rmtree(run.folder)
                else:
                    (run.folder / run_record.LOCK).unlink()
        except Timeout:
            reason = GOING
        if reason is not None:
            log.info("kept        %s: %s", run.name, reason)
            continue
        sweep = run.folder.parent
        if sweep.parent.name == "multiruns" and not any(path.is_dir() for path in sweep.iterdir()):
            shutil.rmtree(sweep)
        log.info("removed     %s", run.name)


def reason_in_use(run: Run, artifact_dir: Path) -> str | None:
    """Returns None for a run that may be removed."""
    record = run_record.read(run.folder)
    if not record and time.time() - (run.folder / ".hydra").stat().st_mtime < STARTUP:
        return "it is just beginning"
    for bundle in map(Path, record.get("bundles", [])):
        if bundle.is_dir():
            return f"the bundle {shown(bundle)} came from it"
    hashes = {digest(path) for path in run.folder.rglob("*.ckpt")}
    for manifest in sorted(artifact_dir.glob(f"*/*/{MANIFEST}")):
        try:
            source = json.loads(manifest.read_text(encoding="utf-8"))["checkpoint"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return f"whether the bundle {manifest.parent} came from it cannot be read"
        if source in hashes:
            return f"the bundle {manifest.parent} came from it"
    return None


def print_runs(runs: list[Run]) -> None:
    """Prints the latest run last, beside the prompt, each with the first test score that its task has."""
    table = Table("run", "started", "state", "differs from the defaults", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[-1].overflow = "fold"
    best, scores = [run.best() for run in runs], [_score(run.metrics()) for run in runs]
    columns = (best, scores)
    names = [sorted({figure[0] for figure in column if figure is not None}) for column in columns]
    for heading in (*(f"best {name}" for name in names[0]), *names[1]):
        table.add_column(heading, justify="right")
    for run, *figures in zip(runs, *columns, strict=True):
        values = [
            f"{figure[1]:.4g}" if figure is not None and figure[0] == name else ""
            for figure, of_column in zip(figures, names, strict=True)
            for name in of_column
        ]
        options = " ".join(run_record.typed_options(run.folder))
        table.add_row(run.name, run.started, run_record.read_state(run.folder), options, *values)
    wide_console().print(table)


def print_comparison(first: Run, second: Run) -> None:
    """Prints the options that differ, then the figures of both."""
    table = Table("", first.name, second.name, box=box.SIMPLE_HEAD, pad_edge=False)
    one, other = _flatten(first.config()), _flatten(second.config())
    for option in sorted(one.keys() | other.keys()):
        if one.get(option) != other.get(option) and not option.startswith(IGNORED_OPTIONS):
            table.add_row(option, *(str(options.get(option, "")) for options in (one, other)))
    table.add_section()
    table.add_row("state", *(run_record.read_state(run.folder) for run in (first, second)))
    table.add_row("commit", *(commit_words(run_record.read(run.folder).get("git")) for run in (first, second)))
    figures = [first.metrics(), second.metrics()]
    for name in sorted(figures[0].keys() | figures[1].keys()):
        table.add_row(name, *("" if name not in metrics else f"{metrics[name]:.4g}" for metrics in figures))
    wide_console().print(table)


def _score(metrics: dict[str, float]) -> tuple[str, float] | None:
    names = [name for name in ("test/acc", "test/f1", "test/r2") if name in metrics]
    return (names[0], metrics[names[0]]) if names else None


def _flatten(section: Any, path: str = "") -> dict[str, Any]:
    """Returns nested options by their dotted names."""
    if not isinstance(section, dict):
        return {path: section}
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flatten(value, f"{path}.{key}".lstrip(".")))
    return flat
