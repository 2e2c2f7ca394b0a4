"""What the commands of a project call. Each name is imported when it is first used: torch takes seconds."""

import ast
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import broken_pipe_ends_quietly
from .early_checks import checked
from .errors import nearest

if TYPE_CHECKING:
    from .config.command_line import Config as Config
    from .distributed.plan import Plan as Plan
    from .workflows.evaluation import Evaluation as Evaluation
    from .workflows.exporting import export_bundle as export_bundle
    from .workflows.prediction import predict_files as predict_files
    from .workflows.training import Training as Training

__all__ = ["Config", "Evaluation", "Plan", "Training", "command", "export_bundle", "main", "predict_files"]

_PLACES = {
    "Config": "config.command_line",
    "Evaluation": "workflows.evaluation",
    "Plan": "distributed.plan",
    "Training": "workflows.training",
    "export_bundle": "workflows.exporting",
    "predict_files": "workflows.prediction",
}
# The engine's own commands, of which a project has those that it chose: the module whose `main(config)` runs once the
# options are composed, and the groups of options that must be there; None for a `main()` that reads `sys.argv` itself.
_ENGINE_COMMANDS = {
    "verify": ("export.verify", ("paths",)),
    "serve": ("serving.serve", ("paths",)),
    "search": ("search.search", ("data", "model", "trainer", "strategy", "paths", "search")),
    "runs": ("reporting.runs", ("paths",)),
    "benchmark": ("benchmark.benchmark", ("data", "model", "trainer", "strategy", "paths")),
    "doctor": ("doctor", None),
    "update": ("update", None),
}
_ENGINE = Path(__file__).parent


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __package__), name)


def command(
    name: str, needs: tuple[str, ...], resumes: bool = False
) -> Callable[[Callable[["Config"], None]], Callable[[], None]]:
    """Turns `main(config)` into a command, as `config.command_line.command` says; what needs no torch is checked."""
    from .config import command_line

    def decorate(main: Callable[["Config"], None]) -> Callable[[], None]:
        @wraps(main)
        def checked_main(config: "Config") -> None:
            main(checked(name, config))

        return command_line.command(name, needs, resumes)(checked_main)

    return decorate


def main(own: tuple[str, ...]) -> None:
    """Runs the command that `sys.argv` names: a module of the project in `own`, or one of the engine's."""
    package = _ENGINE.parent
    files = {name: package / f"{name}.py" for name in own}
    files |= {name: _ENGINE / f"{place.replace('.', '/')}.py" for name, (place, _) in _ENGINE_COMMANDS.items()}
    files = {name: file for name, file in files.items() if file.is_file()}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        with broken_pipe_ends_quietly():
            print(f"usage: python -m {package.name} <command> [option=value ...]\n")
            for command_name, file in files.items():
                print(f"  {command_name:<11}{_summary(file)}")
            print(f"\n`python -m {package.name} <command> --help` shows the options of a command.")
        return
    if name not in files:
        print(f"error: '{name}' is no command; {nearest(name, files)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    if name in own:
        import_module(f"{package.name}.{name}").main()
    else:
        _run_engine_command(name, *_ENGINE_COMMANDS[name])


def _run_engine_command(name: str, place: str, needs: tuple[str, ...] | None) -> None:
    """Composes the options first and imports the command then: `--help` and a mistyped option need no torch."""

    def main(config: Any) -> None:
        import_module(f".{place}", __package__).main(config)

    if needs is None:
        import_module(f".{place}", __package__).main()
    else:
        command(name, needs)(main)()


def _summary(file: Path) -> str:
    """The first line of a module's docstring, read without importing it."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
