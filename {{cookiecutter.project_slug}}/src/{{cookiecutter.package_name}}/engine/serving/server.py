"""Runs the server: loads the bundle, listens, and ends once all open requests are answered."""

import asyncio
import gc
import logging
import signal
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..console import shown
from ..errors import UserError
from ..inference.runtime import Bundle, find_bundle
from .app import create_app
from .batching import Limits
from .metrics import Metrics
from .middleware import RequestMiddleware, set_up_logs
from .model_versions import ModelVersions, ServedModel

if TYPE_CHECKING:
    from .serve import Options

log = logging.getLogger(__name__)

MIN_BODY_LIMIT, BYTES_PER_NUMBER = 16 * 2**20, 32  # a picture of 16 MiB; a float as JSON
ALLOCATIONS_BETWEEN_COLLECTIONS = 10_000


class RequestsCutOff(UserError):
    """Requests that were still open when the time to answer them had passed."""

    exit_code = 1


def run_server(options: "Options", token: str | None, artifact_dir: Path) -> None:
    """Serves until SIGTERM or Ctrl-C; open requests are then answered, for as long as `grace_seconds`."""
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the application handles it: now the newest is loaded
    json_logs, metrics = set_up_logs(options.logs), Metrics(options.drift)
    open_requests: set[asyncio.Task[None]] = set()
    versions = _load_versions(options, artifact_dir, open_requests, metrics)
    largest_batch = (versions.current.bundle.signature.max_elements or 0) * BYTES_PER_NUMBER
    max_body_bytes = options.max_body_bytes or max(MIN_BODY_LIMIT, largest_batch)
    with _listen(options.host, options.port) as listening:
        started = partial(_log_start, versions, listening, token)
        app = create_app(versions, metrics, options.poll_seconds, started)
        middleware = RequestMiddleware(app, metrics, max_body_bytes=max_body_bytes, token=token, json_logs=json_logs)
        _run_uvicorn(middleware, listening, options.grace_seconds, open_requests)
    if num_cut_off := middleware.num_cut_off:
        reason = f"grace_seconds={options.grace_seconds} was too short"
        raise RequestsCutOff(f"{reason}: {num_cut_off} requests that had come in were cut off.")
    log.info("stopped     every request that had come in was answered")


def _load_versions(
    options: "Options", artifact_dir: Path, open_requests: set[asyncio.Task[None]], metrics: Metrics
) -> ModelVersions:
    folder = find_bundle(options.bundle, artifact_dir)
    if options.bundle == "latest" or folder.parent == Path(options.bundle).expanduser().resolve():
        folder = folder.parent  # no version was named: the newest is served, and newer ones that come later
    limits = Limits(options.max_queue, options.max_delay_ms / 1e3, options.timeout_seconds)

    def load(folder: Path) -> ServedModel:
        bundle = Bundle(folder, providers=options.providers, num_threads=options.num_threads)
        return ServedModel(bundle, limits, open_requests, metrics, options.tolerance)

    return ModelVersions(folder, load, metrics)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # Python adds the address
        raise UserError(f"host={host} port={port} cannot be taken: {reason}.") from error


def _log_start(versions: ModelVersions, listening: socket.socket, token: str | None) -> None:
    model, (host, port, *_) = versions.current, listening.getsockname()
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    log.info("bundle      %s: its files and golden samples are as they were published", shown(model.bundle.folder))
    log.info("speed       %.3f ms for one sample%s", model.latency_ms, "; with a token" if token else "")
    log.info("next        open %s in a browser, or: curl --data-binary @<file> %s/predict", address, address)
    log.info("serving     %s, version %s, at %s", model.metadata.name, model.metadata.version, address)


def _run_uvicorn(
    app: ASGIApp, listening: socket.socket, grace_seconds: int, open_requests: set[asyncio.Task[None]]
) -> None:
    config = uvicorn.Config(
        app,
        access_log=False,
        http=HttpProtocol,
        lifespan="on",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=grace_seconds,
        ws="none",
    )
    server = uvicorn.Server(config)
    server.server_state.tasks = open_requests
    # With the default threshold, collections cost a tenth of the requests a second at 64 clients (none at 8).
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS_BETWEEN_COLLECTIONS)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises the signal again that has ended it, which is no failure
        if not server.started:
            raise


class HttpProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(SingleWriteTransport(transport))  # type: ignore[arg-type]


class SingleWriteTransport:
    """Sends the head of a response together with its body.

    A server that is killed between the two would have sent a head without a body, and nginx could not ask another one.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""
        self._timer: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(b"HTTP/1."):
            self._head, self._timer = data, asyncio.get_running_loop().call_soon(self._flush)  # if no body follows
            return
        head, self._head = self._head, b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.write(head + data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
