"""The HTTP server: the Open Inference Protocol v2, `/predict` for people, and a page that shows it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import anyio
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from . import bodies, protocol
from .guard import CLIENT_CLOSED_REQUEST, Access, Guard, error_response, json_response, one_line
from .metrics import Metrics
from .served import Served
from .tensors import Array, Rejected
from .versions import Versions

PACKAGE = __name__.split(".")[0]
PAGES = Path(__file__).parent
# What the page may do: its own script and style, its own server, the picture that was dropped.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'unsafe-inline'",
        "style-src 'unsafe-inline'",
        "connect-src 'self'",
        "img-src blob: data:",
    ]
)


def create_app(
    versions: Versions,
    access: Access,
    metrics: Metrics,
    poll_seconds: float | None,
    started: Callable[[], None],
) -> Guard:
    """Every answer that is no success is `{"error": <one sentence>}`.

    It looks for another version on SIGHUP, and every `poll_seconds`; `started` is called once it does.
    """

    @asynccontextmanager
    async def watching(app: FastAPI) -> AsyncIterator[None]:
        loop, tasks = asyncio.get_running_loop(), set()

        def move() -> None:
            task = loop.create_task(versions.move(retry=True))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        if hasattr(signal, "SIGHUP"):  # Windows has none
            loop.add_signal_handler(signal.SIGHUP, move)
        if poll_seconds is not None:
            tasks.add(loop.create_task(versions.watch(poll_seconds)))
        started()
        yield
        for task in tasks:
            task.cancel()

    app = FastAPI(title=PACKAGE, docs_url=None, redoc_url=None, openapi_url=None, lifespan=watching)
    _add_errors(app, metrics)
    _add_inference(app, versions, metrics)  # first: routes are tried one after the other
    _add_descriptions(app, versions, metrics)
    return Guard(app, access, metrics)


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Rejected)
        return error_response(error, metrics)

    async def failed(request: Request, error: Exception) -> Response:
        return json_response({"error": "the server failed, and its log has the reason."}, 500)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def not_found(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = one_line(f"{request.method} {request.url.path}: {error.detail}")
        return json_response({"error": sentence}, error.status_code)

    app.add_exception_handler(Rejected, refused)
    app.add_exception_handler(HTTPException, not_found)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, failed)


def _add_descriptions(app: FastAPI, versions: Versions, metrics: Metrics) -> None:
    async def page(request: Request) -> Response:
        page = PAGES / versions.current.accepted.reader.PAGE
        return FileResponse(page, headers={"Content-Security-Policy": POLICY})

    async def server(request: Request) -> Response:
        version = versions.current.model.version
        return json_response({"name": PACKAGE, "version": version, "extensions": protocol.EXTENSIONS})

    async def taken(request: Request) -> Response:
        return json_response(versions.current.description())

    async def healthy(request: Request) -> Response:
        return Response()

    async def model(request: Request) -> Response:
        return json_response(_named(request, versions).model.metadata())

    async def model_ready(request: Request) -> Response:
        _named(request, versions)
        return Response()

    async def prometheus(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app.add_route("/", page)
    app.add_route("/v2", server)
    app.add_route("/predict", taken)
    app.add_route("/v2/health/live", healthy)
    app.add_route("/v2/health/ready", healthy)  # it listens only once the golden samples were answered
    app.add_route("/metrics", prometheus)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.add_route(path, model)
        app.add_route(f"{path}/ready", model_ready)


def _add_inference(app: FastAPI, versions: Versions, metrics: Metrics) -> None:
    async def answered(served: Served, inputs: Array) -> dict[str, Array]:
        arrays = await served.infer(inputs)
        if metrics.drift is not None:
            metrics.drift.observe(inputs, arrays[served.bundle.outputs[-1]])
        return arrays

    async def infer(request: Request) -> Response:
        served, body = _named(request, versions), await request.body()
        start = perf_counter()
        header_length = dict(request.scope["headers"]).get(protocol.HEADER_LENGTH.encode())
        asked = protocol.read(body, header_length and header_length.decode("latin-1"), served.model)
        metrics.read.observe(perf_counter() - start)
        arrays = await answered(served, asked.inputs)
        start = perf_counter()
        body, length = protocol.answer(asked, arrays, served.model)
        metrics.written.observe(perf_counter() - start)
        if length is None:
            return Response(body, media_type="application/json")
        headers = {protocol.HEADER_LENGTH: str(length)}
        return Response(body, media_type="application/octet-stream", headers=headers)

    async def predict(request: Request) -> Response:
        served, kind = versions.current, request.headers.get("content-type", "")
        if kind.startswith("multipart/"):
            raise Rejected("send the file itself, as curl --data-binary does, and no form.", 415)
        read = bodies.from_json if kind.startswith("application/json") else bodies.from_file
        body = await request.body()
        sample = await anyio.to_thread.run_sync(read, body, served.accepted)
        (last,) = (await answered(served, sample))[served.bundle.outputs[-1]]
        return json_response(served.bundle.task.told(last, served.bundle.labels, every=True))

    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        app.add_route(path, infer, methods=["POST"])
    app.add_route("/predict", predict, methods=["POST"])


def _named(request: Request, versions: Versions) -> Served:
    served, name, wanted = versions.current, request.path_params["name"], request.path_params.get("version")
    model = served.model
    if name != model.name or wanted not in (None, model.version):
        asked = name if wanted is None else f"{name}, version {wanted},"
        there = f"{model.name}, version {model.version}, is"
        raise Rejected(f"{asked} is not served here: {there}.", 404, "unknown_model")
    return served
