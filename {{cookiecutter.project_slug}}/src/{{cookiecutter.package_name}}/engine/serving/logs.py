"""What a server writes to its output: a line of JSON for whoever collects them, or text for a terminal."""

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import orjson

STDOUT = 1


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": datetime.now(UTC), "level": record.levelname.lower()}
        line["message"] = " ".join(record.getMessage().split())
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def log_as_json() -> None:
    """From now on, whatever a logger writes."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Json())


def is_terminal() -> bool:
    return sys.stdout.isatty()


def write_request(request: Mapping[str, Any], as_json: bool) -> None:
    """One write a line: a logger takes ten times as long."""
    if as_json:
        line = orjson.dumps({"time": datetime.now(UTC), "level": "info", **request})
    else:
        path = quote(request["path"])  # what it holds could steer the terminal
        line = f"{request['status']}  {request['ms']:9.3f} ms  {request['method']} {path}".encode()
    with suppress(OSError):  # nobody reads the log any more: no reason to stop answering
        os.write(STDOUT, line + b"\n")
