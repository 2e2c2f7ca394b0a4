"""The log of the server: a line for each request, as JSON for machines and as text on a terminal."""

import asyncio
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import orjson

STDOUT = 1


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": datetime.now(UTC), "level": record.levelname.lower()}
        line["message"] = " ".join(record.getMessage().split())
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


class AccessLog:
    """Writes to the standard output, all lines of one turn of the event loop by one system call.

    Through `logging` the lines would cost a tenth of all requests a second.
    """

    def __init__(self, choice: str) -> None:
        """Sets up the loggers too; `auto` is text where a terminal shows it, and JSON elsewhere.

        If the log goes to a file or a pipe, a person at the terminal still gets all but the lines of requests, as text.
        """
        self._as_json = choice == "json" or (choice == "auto" and not sys.stdout.isatty())
        self._lines: list[bytes] = []
        root = logging.getLogger()
        for handler in root.handlers if self._as_json else ():
            handler.setFormatter(JsonFormatter())
        if choice == "auto" and self._as_json and sys.stderr.isatty():
            root.addHandler(logging.StreamHandler(sys.stderr))

    def write(self, request_id: str, method: str, path: str, status: int, ms: float) -> None:
        if self._as_json:
            line = {"time": datetime.now(UTC), "level": "info", "request_id": request_id}
            text = orjson.dumps({**line, "method": method, "path": path, "status": status, "ms": round(ms, 3)})
        else:  # control characters in a path could steer the terminal
            text = f"{status}  {ms:9.3f} ms  {method} {quote(path)}".encode()
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(text)

    def flush(self) -> None:
        text = b"".join(line + b"\n" for line in self._lines)
        self._lines.clear()
        with suppress(OSError):  # nobody reads the log any more: no reason to stop answering
            while text:
                text = text[os.write(STDOUT, text) :]
