"""What surrounds the application: token, limits, request ids, metrics and the log, as JSON or as text."""

import asyncio
import hmac
import logging
import os
import re
import secrets
import sys
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from time import perf_counter
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .payload import RequestError

log = logging.getLogger(__name__)

PATHS_WITHOUT_TOKEN = ("/", "/v2/health/live", "/v2/health/ready")  # probes have no token, and the page asks for it
PATHS_WITHOUT_LOG = ("/v2/health/live", "/v2/health/ready", "/metrics")  # asked every few seconds; logged on failure
CLIENT_CLOSED_REQUEST = 499  # nginx's status
COMPRESSED = (b"gzip", b"x-gzip", b"deflate")
MAX_SENTENCE = 280  # characters
STDOUT = 1
REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}")


class RequestMiddleware:
    """Plain ASGI outside the application, so that a request that is refused is never parsed.

    Each request has an id, `X-Request-ID`, given by the client or drawn here, which the answer and the log hold.
    Clients must send `token` unless it is None.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, max_body_bytes: int, token: str | None, json_logs: bool
    ) -> None:
        self._app, self._metrics = app, metrics
        self._max_body_bytes, self._token, self._json_logs = max_body_bytes, token, json_logs
        self.num_cut_off = 0  # requests that were open when the server had to end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, headers, path, status = perf_counter(), dict(scope["headers"]), scope["path"], 0
        encoding = headers.get(b"content-encoding", b"identity").lower()
        decode = Decoder(self._max_body_bytes) if encoding in COMPRESSED else None
        remaining = self._max_body_bytes
        given = headers.get(b"x-request-id", b"")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()

        async def receive_limited() -> Message:
            nonlocal remaining
            message = await receive()
            remaining -= len(message.get("body", b""))
            if remaining < 0:  # a body in chunks has no length in its headers
                raise too_large(self._max_body_bytes)
            if decode is not None and message["type"] == "http.request":
                message["body"] = decode(message.get("body", b""), is_last=not message.get("more_body"))
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            if (refusal := self._refusal(path, headers)) is not None:
                await error_response(refusal, self._metrics)(scope, receive, send_with_id)
            else:
                await self._app(scope, receive_limited, send_with_id)
        except asyncio.CancelledError:
            self.num_cut_off += 1
            raise
        except Exception:  # the client has been answered already
            log.exception("%s %s failed, request %s", scope["method"], path, request_id.decode())
        seconds = perf_counter() - start
        route = getattr(scope.get("endpoint"), "__name__", "none")
        self._metrics.request_seconds(route, status or CLIENT_CLOSED_REQUEST).observe(seconds)
        if path not in PATHS_WITHOUT_LOG or status >= HTTPStatus.BAD_REQUEST:
            log_request(request_id.decode(), scope["method"], path, status, 1e3 * seconds, self._json_logs)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> RequestError | None:
        if self._token is not None and path not in PATHS_WITHOUT_TOKEN:
            given, expected = headers.get(b"authorization", b""), f"Bearer {self._token}".encode()
            if not hmac.compare_digest(given, expected):  # in constant time
                sentence = "a token is needed: send it as 'Authorization: Bearer <token>'."
                return RequestError(sentence, 401, "unauthorized")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._max_body_bytes:
            return too_large(self._max_body_bytes)
        encoding = headers.get(b"content-encoding", b"identity").lower()
        if encoding not in (b"identity", *COMPRESSED):
            name = encoding.decode("latin-1")
            sentence = f"the content encoding '{name}' is not taken: send gzip, deflate or none."
            return RequestError(sentence, 415, "unsupported_encoding")
        return None


class Decoder:
    """Decompresses a body that arrives in pieces; raises `RequestError` beyond `max_bytes`, and for damaged ones."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip, or deflate in the format of zlib

    def __call__(self, piece: bytes, is_last: bool) -> bytes:
        try:
            decoded = self._stream.decompress(piece, self._max_bytes - self._num_bytes + 1)
        except zlib.error as error:
            raise RequestError(f"the body cannot be decompressed: {error}.") from error
        self._num_bytes += len(decoded)
        if self._num_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        if (is_last and not self._stream.eof) or self._stream.unused_data:
            raise RequestError("the body cannot be decompressed: it ends too early, or something follows it.")
        return decoded


def too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the body is larger than the {max_bytes:,} bytes that are taken.", 413, "too_large")


def error_response(error: RequestError, metrics: Metrics) -> Response:
    metrics.rejected.labels(error.reason).inc()
    response = json_response({"error": printable(str(error))}, error.status)
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = "1"
    return response


def printable(sentence: str) -> str:
    """Replaces control characters and shortens the sentence: it may hold anything that a client has sent."""
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in sentence)
    return text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE // 2]}...{text[-100:]}"


def json_response(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": datetime.now(UTC), "level": record.levelname.lower()}
        line["message"] = " ".join(record.getMessage().split())
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def set_up_logs(choice: str) -> bool:
    """Sets up the loggers for `logs=json`, `text` or `auto`; returns whether lines are JSON."""
    as_json = choice == "json" or (choice == "auto" and not sys.stdout.isatty())
    for handler in logging.getLogger().handlers if as_json else ():
        handler.setFormatter(JsonFormatter())
    return as_json


def log_request(request_id: str, method: str, path: str, status: int, ms: float, as_json: bool) -> None:
    """Writes the line of a request by one system call: through `logging` it would cost a tenth of all requests."""
    if as_json:
        line = {"time": datetime.now(UTC), "level": "info", "request_id": request_id}
        text = orjson.dumps({**line, "method": method, "path": path, "status": status, "ms": round(ms, 3)})
    else:  # control characters in a path could steer the terminal
        text = f"{status}  {ms:9.3f} ms  {method} {quote(path)}".encode()
    with suppress(OSError):  # nobody reads the log any more: no reason to stop answering
        os.write(STDOUT, text + b"\n")
