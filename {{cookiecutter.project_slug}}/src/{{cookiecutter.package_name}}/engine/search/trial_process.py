"""A trial is the command `train` with the options that were chosen, in a process of its own.

What it breaks, as memory that is full, is not broken for the next one.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

OUTPUT = "output.txt"
GRACE = 30  # seconds to end in, after SIGTERM


def train(options: list[str], folder: Path) -> str | None:
    """Returns why it failed. What it prints goes to `output.txt` in `folder`, its run directory."""
    command = [sys.executable, "-m", str(__package__), *options]
    with (
        (folder / OUTPUT).open("w", encoding="utf-8") as output,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            code = process.wait()
        finally:
            _end(process)
    return None if code == 0 else _reason(code, folder / OUTPUT)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(code: int, output: Path) -> str:
    """The sentence of a refusal, or the last line of a traceback."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}."
    text = output.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = re.findall(r"^error: (.*)$", text, re.MULTILINE)
    return told[0] if told else lines[-1] if lines else f"ended with exit code {code}."
