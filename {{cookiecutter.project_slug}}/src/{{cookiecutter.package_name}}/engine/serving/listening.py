"""The socket that is listened on, and the server until it is told to end."""

import asyncio
import gc
import signal
import socket
import types
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import UserError
from .batching import OpenRequests

ALLOCATIONS_BETWEEN_COLLECTIONS = 10_000


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # Python adds the address
        raise UserError(f"host={host} port={port} cannot be taken: {reason}.") from error


def run(app: ASGIApp, listening: socket.socket, grace_seconds: int, open_requests: OpenRequests) -> None:
    """Until SIGTERM or Ctrl-C; requests that came in before are answered, for as long as `grace_seconds`."""
    config = uvicorn.Config(
        app,
        access_log=False,
        http=Protocol,
        lifespan="on",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=grace_seconds,
        ws="none",
    )
    server = uvicorn.Server(config)
    open_requests.tasks = server.server_state.tasks
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _once_started(server, signal.getsignal(number)))
    # What stands by now stays; with many requests at once the collector would go through theirs again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS_BETWEEN_COLLECTIONS)
    server.run(sockets=[listening])


class Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Whole(transport))  # type: ignore[arg-type]


class Whole:
    """A transport that sends the head of an answer together with its body.

    A server that is killed between the two has sent a head whose body never comes, and nginx cannot ask another one.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""
        self._later: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(b"HTTP/1."):
            self._head, self._later = data, asyncio.get_running_loop().call_soon(self._flush)  # should no body come
            return
        head, self._head = self._head, b""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._transport.write(head + data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _once_started(server: uvicorn.Server, before: Any) -> Callable[[int, types.FrameType | None], None]:
    """uvicorn raises the signal again when it has ended by it: to end is no failure then."""

    def handle(number: int, frame: types.FrameType | None) -> None:
        if not server.started:
            before(number, frame)

    return handle
