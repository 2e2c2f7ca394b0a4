"""What every benchmark prints: progress on the standard error, and one Markdown table on the standard output."""

import statistics
import sys
from collections.abc import Sequence

MISSED = "**(missed)**"


def say(text: str) -> None:
    """Prints a line of progress."""
    print(text, file=sys.stderr, flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a Markdown table, whose first line says what its columns are."""
    for row in (head, ["---"] * len(head), *rows):
        print("|".join(["", *(f" {cell} " if str(cell) else " " for cell in row), ""]))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and the range, as `0.97 (0.95 to 0.99)`."""
    median, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low} to {high})"


def at_least(value: float, bound: float, text: str) -> str:
    """The text, marked where the value is below its bound."""
    return text if value >= bound else f"{text} {MISSED}"


def at_most(value: float, bound: float, text: str) -> str:
    """The text, marked where the value is above its bound."""
    return text if value <= bound else f"{text} {MISSED}"
