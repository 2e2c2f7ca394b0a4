"""Tables of runs at the terminal."""

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from ..console import wide_console
from ..runs import run_record
from ..runs.provenance import commit_words

if TYPE_CHECKING:
    from .runs import Run

OF_PLACES = ("paths.", "tags")  # differ between any two runs, or say nothing of their results


def print_runs(runs: "list[Run]") -> None:
    """The latest last, beside the prompt. The figure of the test is the first that its task has."""
    table = _table("run", "started", "state", "differs from the defaults")
    table.columns[-1].overflow = "fold"
    best = [run.best() for run in runs]
    monitors = sorted({figure[0] for figure in best if figure is not None})
    for monitor in monitors:
        table.add_column(f"best {monitor}", justify="right")
    scores = [_score(run.metrics()) for run in runs]
    named = sorted({score[0] for score in scores if score is not None})
    for name in named:
        table.add_column(name, justify="right")
    for run, figure, score in zip(runs, best, scores, strict=True):
        values = [_value(figure, monitor) for monitor in monitors] + [_value(score, name) for name in named]
        differences = " ".join(run_record.differences(run.folder))
        table.add_row(run.name, run.started, run_record.state_of(run.folder), differences, *values)
    wide_console().print(table)


def print_comparison(first: "Run", second: "Run") -> None:
    """Options that differ, then the figures of both."""
    table = _table("", first.name, second.name)
    one, other = _flat(first.config()), _flat(second.config())
    for option in sorted(one.keys() | other.keys()):
        if one.get(option) != other.get(option) and not option.startswith(OF_PLACES):
            table.add_row(option, *(str(options.get(option, "")) for options in (one, other)))
    table.add_section()
    table.add_row("state", run_record.state_of(first.folder), run_record.state_of(second.folder))
    table.add_row("commit", *(commit_words(run_record.read(run.folder).get("git")) for run in (first, second)))
    figures, others = first.metrics(), second.metrics()
    for name in sorted(figures.keys() | others.keys()):
        table.add_row(name, *("" if name not in found else f"{found[name]:.4g}" for found in (figures, others)))
    wide_console().print(table)


def _table(*headings: str) -> Table:
    return Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)


def _score(metrics: dict[str, float]) -> tuple[str, float] | None:
    known = [name for name in ("test/acc", "test/f1", "test/r2") if name in metrics]
    return (known[0], metrics[known[0]]) if known else None


def _value(figure: tuple[str, float] | None, name: str) -> str:
    return "" if figure is None or figure[0] != name else f"{figure[1]:.4g}"


def _flat(section: Any, path: str = "") -> dict[str, Any]:
    """By dotted names."""
    if not isinstance(section, dict):
        return {path: section}
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{path}.{key}".lstrip(".")))
    return flat
