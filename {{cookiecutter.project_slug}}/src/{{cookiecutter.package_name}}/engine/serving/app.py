"""The HTTP application: the Open Inference Protocol v2, `/predict` for people, and a page that uses it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from ..inference.answers import describe
from ..inference.signature import Arrays
from . import protocol
from .metrics import Metrics
from .middleware import CLIENT_CLOSED_REQUEST, error_response, json_response, printable
from .model_versions import ModelVersions, ServedModel
from .payload import RequestError, sample_from_file, sample_from_json

PACKAGE = __name__.split(".")[0]
PAGES = Path(__file__).parent
MODEL, VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
# The page may run its own script and style, ask its own server, and show the picture that was dropped.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src blob: data:"
)


def create_app(
    versions: ModelVersions, metrics: Metrics, poll_seconds: float | None, started: Callable[[], None]
) -> FastAPI:
    """Creates an application whose answers are `{"error": <one sentence>}` where they are no success.

    It looks for another version on SIGHUP and every `poll_seconds`, and calls `started` once it does.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        reload = asyncio.Event()
        if hasattr(signal, "SIGHUP"):  # Windows has none
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.set)
        watcher = asyncio.create_task(versions.watch(poll_seconds, reload))
        started()
        yield
        watcher.cancel()

    endpoints = Endpoints(versions, metrics)
    return FastAPI(
        title=PACKAGE,
        openapi_url=None,
        lifespan=lifespan,
        routes=endpoints.routes(),
        exception_handlers={
            RequestError: endpoints.refused,
            HTTPException: endpoints.not_found,
            ClientDisconnect: endpoints.disconnected,
            Exception: endpoints.failed,
        },
    )


class Endpoints:
    """Answers requests; the metrics name routes as these methods."""

    def __init__(self, versions: ModelVersions, metrics: Metrics) -> None:
        self._versions, self._metrics = versions, metrics

    def routes(self) -> list[BaseRoute]:
        return [  # tried in this order
            *(Route(f"{path}/infer", self.infer, methods=["POST"]) for path in (MODEL, VERSION)),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/predict", self.description),
            Route("/", self.page),
            Route("/v2", self.server),
            Route("/v2/health/live", self.health),
            Route("/v2/health/ready", self.health),  # the server listens only once the golden samples were answered
            Route("/metrics", self.metrics),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            *(Route(path, self.statistics) for path in ("/v2/models/stats", f"{MODEL}/stats", f"{VERSION}/stats")),
            *(Route(f"{path}/config", self.config) for path in (MODEL, VERSION)),
            *(Route(path, self.model) for path in (MODEL, VERSION)),
            *(Route(f"{path}/ready", self.model_ready) for path in (MODEL, VERSION)),
        ]

    async def infer(self, request: Request) -> Response:
        model, body = self._find_model(request), await request.body()
        start = perf_counter()
        header_length = dict(request.scope["headers"]).get(protocol.HEADER_LENGTH.encode())
        asked = protocol.read(body, header_length and header_length.decode("latin-1"), model.metadata)
        self._metrics.read.observe(perf_counter() - start)
        outputs = await self._compute(model, asked.inputs)
        start = perf_counter()
        body, length = protocol.write(asked, outputs, model.metadata)
        self._metrics.written.observe(perf_counter() - start)
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={protocol.HEADER_LENGTH: str(length)})

    async def predict(self, request: Request) -> Response:
        model, content_type = self._versions.current, request.headers.get("content-type", "").lower()
        if content_type.startswith("multipart/"):
            raise RequestError("send the file itself, as curl --data-binary does, and no form.", 415)
        body = await request.body()
        # curl says that JSON is a form, unless it is told.
        is_json = "json" in content_type or ("csv" not in content_type and body.lstrip()[:1] in (b"[", b"{"))
        read = sample_from_json if is_json else sample_from_file
        signature = model.bundle.signature
        if not signature.max_batch_size:
            raise RequestError("this model takes no batches: ask it by the Open Inference Protocol.", 404)
        sample = await asyncio.to_thread(read, body, signature)
        outputs = await self._compute(model, sample.arrays)
        row = {name: output[0] for name, output in outputs.items()}
        answer = await asyncio.to_thread(describe, signature, row, every=True)
        for column in sample.never_seen:
            self._metrics.never_seen.labels(column).inc()
        return json_response({**answer, **({"never_seen": sample.never_seen} if sample.never_seen else {})})

    async def description(self, request: Request) -> Response:
        return json_response(self._versions.current.describe())

    async def page(self, request: Request) -> Response:
        page = PAGES / self._versions.current.page
        return FileResponse(page, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    async def server(self, request: Request) -> Response:
        version = self._versions.current.metadata.version
        return json_response({"name": PACKAGE, "version": version, "extensions": protocol.EXTENSIONS})

    async def health(self, request: Request) -> Response:
        """KServe's client reads the answer, and Triton's its status alone."""
        return json_response({request.url.path.rpartition("/")[2]: True})

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def model(self, request: Request) -> Response:
        return json_response(self._find_model(request).metadata.to_response())

    async def config(self, request: Request) -> Response:
        return json_response(self._find_model(request).metadata.to_config())

    async def statistics(self, request: Request) -> Response:
        """Since the start of the server, whatever version answered."""
        current = self._find_model(request) if "name" in request.path_params else self._versions.current
        named = {"name": current.metadata.name, "version": current.metadata.version}
        return json_response({"model_stats": [{**named, **self._metrics.statistics()}]})

    async def index(self, request: Request) -> Response:
        metadata = self._versions.current.metadata
        return json_response([{"name": metadata.name, "version": metadata.version, "state": "READY", "reason": ""}])

    async def model_ready(self, request: Request) -> Response:
        self._find_model(request)
        return Response()

    async def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error_response(error, self._metrics)

    async def not_found(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = printable(f"{request.method} {request.url.path}: {error.detail}")
        return json_response({"error": sentence}, error.status_code)

    async def disconnected(self, request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def failed(self, request: Request, error: Exception) -> Response:
        return json_response({"error": "the server failed, and its log has the reason."}, 500)

    async def _compute(self, model: ServedModel, inputs: Arrays) -> Arrays:
        outputs = await model.infer(inputs)
        if self._metrics.drift is not None:
            self._metrics.drift.observe(inputs, outputs)
        return outputs

    def _find_model(self, request: Request) -> ServedModel:
        """Returns the current model; raises `RequestError` if the path names another model or version."""
        current, name, version = self._versions.current, request.path_params["name"], request.path_params.get("version")
        served = current.metadata
        if name != served.name or version not in (None, served.version):
            asked = name if version is None else f"{name}, version {version},"
            sentence = f"{asked} is not served here: {served.name}, version {served.version}, is."
            raise RequestError(sentence, 404, "unknown_model")
        return current
