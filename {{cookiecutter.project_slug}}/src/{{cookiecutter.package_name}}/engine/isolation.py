"""Runs functions in a fresh Python process, in which nothing of this one is loaded or set.

The process, `python -m <package>.engine.isolation`, reads calls from its standard input and answers each in one line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self


class IsolatedError(Exception):
    """The reason for which an isolated call failed, in one line."""


class IsolatedProcess:
    """A process that calls module-level functions until the end of the `with` block.

    Arguments and results are plain data, as JSON holds them. What a module caches stays from call to call.
    """

    def __enter__(self) -> Self:
        self.errors = TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Returns `function(**arguments)`; raises `IsolatedError` where it raises or the process ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"module": function.__module__, "function": function.__name__, "arguments": arguments}
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:  # the process has ended
            raise IsolatedError(self._last_words()) from error
        if "error" in answer:
            raise IsolatedError(answer["error"])
        return answer["result"]

    def _last_words(self) -> str:
        status = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with {status}"


def run_isolated(function: Callable[..., Any], **arguments: Any) -> Any:
    """Calls one function in a process of its own."""
    with IsolatedProcess() as process:
        return process.call(function, **arguments)


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            function = getattr(import_module(request["module"]), request["function"])
            answer = {"result": function(**request["arguments"])}
        except Exception as error:  # whatever the function and its libraries raise
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
