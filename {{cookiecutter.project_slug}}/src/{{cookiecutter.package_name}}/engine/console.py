"""How what people read is written: paths, commands and progress at the terminal, JSON in files."""

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 160  # where there is no terminal


def shown(path: Path) -> str:
    """Relative to the working directory where it lies below it: shorter, and it can be copied into a command."""
    path = Path.cwd() / path
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def python() -> str:
    """As it can be typed here: the environment's own, where that is not activated."""
    return shown(Path(sys.executable)) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"


def duration(seconds: float) -> str:
    """As `1 h 02 min`, `3 min 20 s` or `12 s`."""
    hours, minutes, rest = int(seconds) // 3600, int(seconds) // 60 % 60, int(seconds) % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def wide_console() -> "Console":
    """For tables of many columns: as wide as the terminal, and in a pipe or a file so wide that nothing is cut off."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def write_json(contents: object, path: Path) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(contents, indent=2, ensure_ascii=False) + "\n")


def bar(items: Sequence[Any], description: str) -> Iterable[Any]:
    """The items, with a bar that shows on a terminal how far it has come."""
    from rich import console, progress

    return progress.track(items, description, console=console.Console(stderr=True), disable=not sys.stderr.isatty())


class LogFile(logging.FileHandler):
    """Raises errors such as a full disk; Python's own handler would print a traceback for each line of the log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is theirs
        raise  # it is called where the error was caught
