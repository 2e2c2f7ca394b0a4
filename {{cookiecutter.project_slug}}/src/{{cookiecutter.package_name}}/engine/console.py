"""What people read at the terminal and in files: paths, commands, durations, progress, JSON."""

import json
import logging
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .atomic import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 160  # characters of a line, without a terminal


def shown(path: Path) -> str:
    """A path below the working directory is shown relative to it: shorter, and it can be copied into a command."""
    path = Path.cwd() / path
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def python() -> str:
    """The name of the interpreter as it can be typed here: a path if its environment is not activated."""
    is_active = os.environ.get("VIRTUAL_ENV") == sys.prefix or not Path(sys.executable).is_relative_to(Path.cwd())
    return "python" if is_active else shown(Path(sys.executable))


def duration(seconds: float) -> str:
    """Formats seconds as `1 h 02 min`, `3 min 20 s` or `12 s`."""
    hours, minutes, rest = int(seconds) // 3600, int(seconds) // 60 % 60, int(seconds) % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def wide_console() -> "Console":
    """A console for wide tables: as wide as the terminal; in a pipe or a file so wide that nothing is cut off."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def write_json(contents: object, path: Path) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(contents, indent=2, ensure_ascii=False) + "\n")


def bar(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Iterates over the items, with a progress bar if standard error is a terminal."""
    from rich import console, progress

    return progress.track(items, description, console=console.Console(stderr=True), disable=not sys.stderr.isatty())


@contextmanager
def broken_pipe_ends_quietly() -> Iterator[None]:
    """Ends the process with the exit code of SIGPIPE once nobody reads its output, as in `--help | head -1`.

    A broken pipe or socket that is not the standard output is an error like any other.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if sys.platform != "win32":
            output = select.poll()
            output.register(sys.stdout.fileno(), select.POLLERR)
            if not output.poll(0):
                raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would fail again as it flushes at exit
        sys.exit(141)


class _Raising(logging.Handler):
    """Raises its errors; Python's own handlers print a traceback for each line of the log, and go on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is theirs
        raise  # it is called where the error was caught


class LogFile(_Raising, logging.FileHandler):
    """The log file of a run; a full disk ends the run."""


class LogStream(_Raising, logging.StreamHandler[TextIO]):
    """The log on the terminal or in a pipe; a pipe that nobody reads ends the run."""
