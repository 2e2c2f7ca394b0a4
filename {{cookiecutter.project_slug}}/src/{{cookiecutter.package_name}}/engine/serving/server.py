"""Runs the server: loads the bundle, listens, and ends once all open requests are answered."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import shown
from ..errors import UserError
from ..inference.runtime import Bundle, find_bundle
from .app import App
from .batching import Limits
from .connection import Connection, Request
from .logs import AccessLog
from .metrics import Metrics
from .model_versions import ModelVersions, ServedModel

if TYPE_CHECKING:
    from .serve import Options

log = logging.getLogger(__name__)

MIN_BODY_LIMIT, BYTES_PER_NUMBER = 16 * 2**20, 32  # a picture of 16 MiB; a float as JSON
ALLOCATIONS_BETWEEN_COLLECTIONS = 10_000
BACKLOG = 2048  # connections that wait to be accepted


class RequestsCutOff(UserError):
    """Requests that were still open when the time to answer them had passed."""

    exit_code = 1


def run_server(options: "Options", token: str | None, artifact_dir: Path) -> None:
    """Serves until SIGTERM or Ctrl-C; open requests are then answered, for as long as `grace_seconds`."""
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the application handles it: now the newest is loaded
    access_log, metrics = AccessLog(options.logs), Metrics(options.drift)
    open_requests: set[Request] = set()
    versions = _load_versions(options, artifact_dir, open_requests, metrics)
    largest_batch = (versions.current.bundle.signature.max_elements or 0) * BYTES_PER_NUMBER
    max_body_bytes = options.max_body_bytes or max(MIN_BODY_LIMIT, largest_batch)
    app = App(versions, metrics, access_log, open_requests=open_requests, max_body_bytes=max_body_bytes, token=token)
    with _listen(options.host, options.port) as listening, asyncio.Runner(loop_factory=_event_loop()) as runner:
        # With the default threshold, collections cost a tenth of the requests a second at 64 clients (none at 8).
        gc.collect()
        gc.freeze()
        gc.set_threshold(ALLOCATIONS_BETWEEN_COLLECTIONS)
        watch = partial(versions.watch, options.poll_seconds)
        log_start = partial(_log_start, versions, listening, token)
        num_cut_off = runner.run(_serve(app, listening, watch, log_start, options.grace_seconds))
    access_log.flush()
    if num_cut_off:
        reason = f"grace_seconds={options.grace_seconds} was too short"
        raise RequestsCutOff(f"{reason}: {num_cut_off} requests that had come in were cut off.")
    log.info("stopped     every request that had come in was answered")


def _load_versions(
    options: "Options", artifact_dir: Path, open_requests: set[Request], metrics: Metrics
) -> ModelVersions:
    folder = find_bundle(options.bundle, artifact_dir)
    if options.bundle == "latest" or folder.parent == Path(options.bundle).expanduser().resolve():
        folder = folder.parent  # no version was named: the newest is served, and newer ones that come later
    limits = Limits(options.max_queue, options.max_delay_ms / 1e3, options.timeout_seconds)

    def load(folder: Path) -> ServedModel:
        bundle = Bundle(folder, providers=options.providers, num_threads=options.num_threads, key=options.key)
        return ServedModel(bundle, limits, open_requests, metrics, options.tolerance)

    return ModelVersions(folder, load, metrics)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
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


async def _serve(
    app: App,
    listening: socket.socket,
    watch: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
    log_start: Callable[[], None],
    grace_seconds: int,
) -> int:
    """Serves until a signal; returns how many requests were cut off, because time or a second signal ended them."""
    loop, reload = asyncio.get_running_loop(), asyncio.Event()
    stops = [asyncio.Event(), asyncio.Event()]

    def stop() -> None:
        stops[stops[0].is_set()].set()

    _on_signal(stop, signal.SIGTERM, signal.SIGINT)
    if hasattr(signal, "SIGHUP"):  # Windows has none
        _on_signal(reload.set, signal.SIGHUP)
    tasks = [loop.create_task(watch(reload)), loop.create_task(app.tick())]
    server = await loop.create_server(lambda: Connection(app), sock=listening, backlog=BACKLOG)
    log_start()
    await stops[0].wait()
    server.close()
    app.is_draining = True
    for connection in list(app.connections):
        connection.drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_seconds):
            while app.connections and not stops[1].is_set():
                await asyncio.sleep(0.01)
    num_cut_off = len(app.open_requests)
    for connection in list(app.connections):
        connection.abort()
    for task in tasks:
        task.cancel()
    await asyncio.sleep(0)  # the connections end
    return num_cut_off


def _on_signal(act: Callable[[], None], *numbers: signal.Signals) -> None:
    loop = asyncio.get_running_loop()
    for number in numbers:
        try:
            loop.add_signal_handler(number, act)
        except NotImplementedError:  # on Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop, which Windows has not."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
