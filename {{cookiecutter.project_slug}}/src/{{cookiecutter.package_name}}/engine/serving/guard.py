"""What stands between the network and the application: it lets requests in, counts them and writes them down."""

import asyncio
import hmac
import logging
import re
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .logs import write_request
from .metrics import Metrics
from .tensors import Rejected

log = logging.getLogger(__name__)

# Without the token: probes have none, and the page asks for it.
OPEN = ("/", "/v2/health/live", "/v2/health/ready")
# Asked every few seconds by machines: written down only where they fail.
PROBES = ("/v2/health/live", "/v2/health/ready", "/metrics")
CLIENT_CLOSED_REQUEST = 499  # as nginx has it
LONGEST_SENTENCE = 280  # characters
REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}")


@dataclass(frozen=True)
class Access:
    """`token` is what a client must show; None lets everybody in."""

    max_body_bytes: int
    token: str | None
    json_logs: bool


class Guard:
    """Plain ASGI, outside the application: nothing is parsed that will not be answered.

    Each request has an id, `X-Request-ID`, that the client gave or that is drawn here; the answer and the log have it.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics
        self.num_cut_off = 0  # as the server had to end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, headers, left, status = perf_counter(), dict(scope["headers"]), self._access.max_body_bytes, 0
        given = headers.get(b"x-request-id", b"")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:  # sent in chunks, or with a length that was too small
                raise self._too_large()
            return message

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            if (refusal := self._refusal(scope["path"], headers)) is not None:
                await error_response(refusal, self._metrics)(scope, receive, marked)
            else:
                await self._app(scope, limited, marked)
        except asyncio.CancelledError:
            self.num_cut_off += 1
            raise
        except Exception:  # the client has had its answer
            log.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id.decode())
        seconds = perf_counter() - start
        route = getattr(scope.get("endpoint"), "__name__", "none")
        self._metrics.observe_request(route, status or CLIENT_CLOSED_REQUEST, seconds)
        if scope["path"] not in PROBES or status >= HTTPStatus.BAD_REQUEST:
            line = {"request_id": request_id.decode(), "method": scope["method"], "path": scope["path"]}
            write_request({**line, "status": status, "ms": round(1e3 * seconds, 3)}, self._access.json_logs)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Rejected | None:
        if self._access.token is not None and path not in OPEN:
            given, expected = headers.get(b"authorization", b""), f"Bearer {self._access.token}".encode()
            if not hmac.compare_digest(given, expected):  # in constant time
                return Rejected("a token is needed: send it as 'Authorization: Bearer <token>'.", 401, "unauthorized")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._access.max_body_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> Rejected:
        most = self._access.max_body_bytes
        return Rejected(f"the body is larger than the {most:,} bytes that are taken.", 413, "too_large")


def error_response(rejected: Rejected, metrics: Metrics) -> Response:
    metrics.rejected.labels(rejected.reason).inc()
    response = json_response({"error": one_line(str(rejected))}, rejected.status)
    if rejected.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if rejected.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = "1"
    return response


def one_line(sentence: str) -> str:
    """It may name what a client has sent: any character, and as many as a request line holds."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in sentence)
    return shown if len(shown) <= LONGEST_SENTENCE else f"{shown[: LONGEST_SENTENCE // 2]}...{shown[-100:]}"


def json_response(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
