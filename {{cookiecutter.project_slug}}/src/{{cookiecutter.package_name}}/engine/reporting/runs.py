"""The runs of `train`: a table of them, two compared, old ones removed.

python -m <package> runs
python -m <package> runs compare=[2026-11-27_09-30-00,latest]
python -m <package> runs remove=[2026-11-27_09-30-00]
"""

from __future__ import annotations

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

from ..config.command_line import Config, command
from ..console import shown
from ..errors import UserError, nearest
from ..runs import run_record

log = logging.getLogger(__name__)

DAY, BEGINNING = 24 * 3600, 60  # seconds
GOING = "it is still going"


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
    """What its directory tells. `name` is the end of the path: a time, or the time of a sweep and a number."""

    name: str
    folder: Path

    @property
    def started(self) -> str:
        written = time.localtime((self.folder / ".hydra").stat().st_mtime)
        return str(run_record.read(self.folder).get("started", time.strftime(run_record.TIME, written)))

    def config(self) -> dict[str, Any]:
        plain = OmegaConf.to_container(OmegaConf.load(self.folder / ".hydra/config.yaml"))
        return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}

    def metrics(self) -> dict[str, float]:
        """Of the end of the run; empty where it has none."""
        try:
            figures: dict[str, float] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return figures

    def best(self) -> tuple[str, float] | None:
        """The name and the best value of what its best checkpoint is chosen by; of a run that is going until now."""
        chosen = (self.config().get("callbacks") or {}).get("best") or {}
        monitor, mode = chosen.get("monitor", "val/loss"), max if chosen.get("mode") == "max" else min
        try:
            with (self.folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
                values = [float(row[monitor]) for row in csv.DictReader(file) if row.get(monitor)]
        except (OSError, ValueError):
            return None
        return (monitor, mode(values)) if values else None


@command("runs", needs=("paths",))
def main(config: Config) -> None:
    from ..config.validation import read_options
    from .run_tables import print_comparison, print_runs

    options = read_options(config, Options)
    log_dir, artifact_dir = Path(config["paths"]["log_dir"]), Path(config["paths"]["artifact_dir"])
    runs = find(log_dir)
    if options.compare is not None:
        print_comparison(*(named(name, runs) for name in options.compare))
    elif options.remove is not None or options.remove_older_than is not None:
        chosen = [named(name, runs) for name in options.remove or []]
        remove(chosen, old(runs, options.remove_older_than), artifact_dir)
    elif not runs:
        log.info("There is no run under %s yet.", log_dir / "train")
    else:
        print_runs(runs)


def find(log_dir: Path) -> list[Run]:
    """The oldest first; jobs of a sweep as `<sweep>/<number>`."""
    folders = [folder for folder in run_record.run_dirs(log_dir) if (folder / ".hydra/config.yaml").is_file()]
    runs = [Run("/".join(folder.relative_to(log_dir / "train").parts[1:]), folder) for folder in folders]
    return sorted(runs, key=lambda run: (run.started, run.name))


def named(name: str, runs: list[Run]) -> Run:
    """By its name in the table, its directory, or `latest`."""
    if name == "latest" and runs:
        return runs[-1]
    for run in runs:
        if name == run.name or Path(name).resolve() == run.folder.resolve():
            return run
    raise UserError(f"'{name}' is no run; {nearest(name, [run.name for run in runs])}")


def old(runs: list[Run], days: float | None) -> list[Run]:
    if days is None:
        return []
    limit = time.strftime(run_record.TIME, time.localtime(time.time() - days * DAY))
    return [run for run in runs if run.started < limit]


def remove(chosen: list[Run], others: list[Run], artifact_dir: Path) -> None:
    """Refuses to remove what is in use of `chosen`, before any is removed; of `others` it is kept, and named."""
    for run in chosen:
        going = run_record.is_held(run.folder / run_record.LOCK)
        if reason := GOING if going else why_kept(run, artifact_dir):
            raise UserError(f"'{run.name}' is kept: {reason}; nothing was removed.")
    for run in {run.name: run for run in (*chosen, *others)}.values():
        try:
            with FileLock(run.folder / run_record.LOCK, timeout=0):  # it could go on meanwhile
                reason = why_kept(run, artifact_dir)
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


def why_kept(run: Run, artifact_dir: Path) -> str | None:
    """None for a run that may be removed."""
    from ..inference.runtime import MANIFEST, digest

    known = run_record.read(run.folder)
    if not known and time.time() - (run.folder / ".hydra").stat().st_mtime < BEGINNING:
        return "it is just beginning"
    for bundle in map(Path, known.get("bundles", [])):
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


if __name__ == "__main__":
    main()
