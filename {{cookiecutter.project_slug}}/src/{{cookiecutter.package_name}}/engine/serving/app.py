"""The HTTP application: the Open Inference Protocol v2, `/predict` for people, and a page that uses it."""

import asyncio
import hmac
import logging
import re
import secrets
import zlib
from collections.abc import Callable, Coroutine, Sequence
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import orjson

from ..inference.answers import describe
from ..inference.signature import Arrays, Signature
from . import protocol
from .connection import Connection, Request, Response, too_large
from .logs import AccessLog
from .metrics import Metrics
from .model_versions import ModelVersions, ServedModel
from .payload import RequestError, Sample, samples_of_body

log = logging.getLogger(__name__)

PACKAGE = __name__.split(".")[0]
PAGES = Path(__file__).parent
PATHS_WITHOUT_TOKEN = ("/", "/v2/health/live", "/v2/health/ready")  # probes have no token, and the page asks for it
PATHS_WITHOUT_LOG = ("/v2/health/live", "/v2/health/ready", "/metrics")  # asked every few seconds; logged on failure
CLIENT_CLOSED_REQUEST = 499  # nginx's status
COMPRESSED = (b"gzip", b"x-gzip", b"deflate")
HEADERS_OF_ERRORS = {401: (("www-authenticate", "Bearer"),), 503: (("retry-after", "1"),)}
MAX_SENTENCE = 280  # characters
REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
# The page may run its own script and style, ask its own server, and show the picture that was dropped.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src blob: data:"
)

Answer = Response | Coroutine[Any, Any, Response] | None  # None: it comes by `request.respond`


class App:
    """Answers the requests of all connections; an answer that is no success is `{"error": <one sentence>}`.

    Each request has an id, `X-Request-ID`, given by the client or drawn here, which the answer and the log hold.
    Clients must send `token` unless it is None. The metrics name routes as the methods of this class.
    """

    def __init__(
        self,
        versions: ModelVersions,
        metrics: Metrics,
        access_log: AccessLog,
        *,
        open_requests: set[Request],
        max_body_bytes: int,
        token: str | None,
    ) -> None:
        self._versions, self._metrics, self._access_log = versions, metrics, access_log
        self._token = b"" if token is None else f"Bearer {token}".encode()
        self.open_requests, self.max_body_bytes = open_requests, max_body_bytes
        self.connections: set[Connection] = set()
        self.is_draining = False
        self.now, self.date = monotonic(), formatdate(usegmt=True).encode()
        self._handlers_of = lru_cache(64)(self._find_handlers)  # clients use few paths
        self._taken: list[Request] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._routes: dict[str, dict[str, Callable[[Request], Answer]]] = {
            "/": {"GET": self.page},
            "/predict": {"POST": self.predict, "GET": self.description},
            "/v2": {"GET": self.server},
            "/v2/health/live": {"GET": self.health},
            "/v2/health/ready": {"GET": self.health},  # the server listens only once the golden samples were answered
            "/metrics": {"GET": self.metrics},
            "/v2/repository/index": {"POST": self.index},
            "/v2/models/stats": {"GET": self.statistics},
        }
        self._model_routes: dict[str, dict[str, Callable[[Request], Answer]]] = {
            "": {"GET": self.model},
            "infer": {"POST": self.infer},
            "ready": {"GET": self.model_ready},
            "config": {"GET": self.config},
            "stats": {"GET": self.statistics},
        }

    # What a connection calls.

    def check(self, request: Request) -> None:
        """Refuses a request by its head."""
        headers = request.headers
        needs_token = self._token and request.path not in PATHS_WITHOUT_TOKEN
        if needs_token and not hmac.compare_digest(headers.get(b"authorization", b""), self._token):  # in constant time
            raise RequestError("a token is needed: send it as 'Authorization: Bearer <token>'.", 401, "unauthorized")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.max_body_bytes:
            raise too_large(self.max_body_bytes)
        encoding = headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() not in (b"identity", *COMPRESSED):
            sentence = f"the content encoding '{encoding.decode('latin-1')}' is not taken: send gzip, deflate or none."
            raise RequestError(sentence, 415, "unsupported_encoding")

    def take(self, request: Request) -> None:
        """Answers a request in the next turn of the event loop, with all others that arrived in this one."""
        request.id = _id_of(request)
        if not self._taken:
            asyncio.get_running_loop().call_soon(self._answer_taken)
        self._taken.append(request)

    def record(self, request: Request, status: int | None) -> None:
        seconds, status = perf_counter() - request.start, status or CLIENT_CLOSED_REQUEST
        self._metrics.request_seconds(request.route, status).observe(seconds)
        if request.path not in PATHS_WITHOUT_LOG or status >= HTTPStatus.BAD_REQUEST:
            self._access_log.write(request.id or _id_of(request), request.method, request.path, status, 1e3 * seconds)

    def _answer_taken(self) -> None:
        taken, self._taken = self._taken, []
        for request in taken:
            try:
                if request.refusal is not None:
                    raise request.refusal
                self._answer(request)
            except Exception as error:
                request.respond(self._failure(request, error))

    def _answer(self, request: Request) -> None:
        handlers = self._handlers_of(request.path)
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            status = HTTPStatus.METHOD_NOT_ALLOWED if handlers else HTTPStatus.NOT_FOUND
            sentence = printable(f"{request.method} {request.path}: {status.phrase}")
            allowed = (("allow", ", ".join(handlers)),) if handlers else ()
            request.respond(json_response({"error": sentence}, status, allowed))
            return
        request.route = handler.__name__
        if request.headers.get(b"content-encoding", b"").lower() in COMPRESSED:
            request.body = decompress(request.body, self.max_body_bytes)
        answer = handler(request)
        if isinstance(answer, Response):
            request.respond(answer)
        elif answer is not None:
            task = asyncio.get_running_loop().create_task(self._answer_later(request, answer))
            self._tasks.add(task)  # the event loop itself keeps no reference
            task.add_done_callback(self._tasks.discard)

    async def _answer_later(self, request: Request, answer: Coroutine[Any, Any, Response]) -> None:
        try:
            response = await answer
        except Exception as error:
            response = self._failure(request, error)
        request.respond(response)

    def _failure(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestError):
            log.error("%s %s failed, request %s", request.method, request.path, request.id, exc_info=error)
            return json_response({"error": "the server failed, and its log has the reason."}, 500)
        self._metrics.rejected.labels(error.reason).inc()
        return json_response({"error": printable(str(error))}, error.status, HEADERS_OF_ERRORS.get(error.status, ()))

    def _find_handlers(self, path: str) -> dict[str, Callable[[Request], Answer]]:
        if (found := self._routes.get(path)) is not None:
            return found
        match path.split("/")[1:]:
            case ["v2", "models", name, *rest] if name:
                rest = rest[2:] if len(rest) > 1 and rest[0] == "versions" else rest
                return self._model_routes.get(rest[0] if rest else "", {}) if len(rest) < 2 else {}
        return {}

    async def tick(self) -> None:
        """Once a second: the date, and connections whose clients are too slow."""
        while True:
            self.now, self.date = monotonic(), formatdate(usegmt=True).encode()
            for connection in list(self.connections):
                connection.sweep()
            await asyncio.sleep(1)

    # The routes.

    def infer(self, request: Request) -> None:
        model = self._find_model(request)
        start = perf_counter()
        given = request.headers.get(protocol.HEADER_LENGTH.encode())
        header_length = None if given is None else given.decode("latin-1")
        asked = protocol.read(request.body, header_length, model.metadata)
        self._metrics.read.observe(perf_counter() - start)
        model.submit(asked.inputs, partial(self._write, request, model, asked))

    def _write(
        self,
        request: Request,
        model: ServedModel,
        asked: protocol.InferenceRequest,
        result: Arrays | Exception,
    ) -> None:
        try:
            if isinstance(result, Exception):
                raise result
            if self._metrics.drift is not None:
                self._metrics.drift.observe(asked.inputs, result)
            start = perf_counter()
            body, length = protocol.write(asked, result, model.metadata)
            self._metrics.written.observe(perf_counter() - start)
        except Exception as error:
            request.respond(self._failure(request, error))
            return
        if length is None:
            request.respond(Response(body))
        else:
            headers = ((protocol.HEADER_LENGTH, str(length)),)
            request.respond(Response(body, content_type="application/octet-stream", headers=headers))

    async def predict(self, request: Request) -> Response:
        model, content_type = self._versions.current, request.headers.get(b"content-type", b"").decode("latin-1")
        signature = model.bundle.signature
        if not signature.max_batch_size:
            raise RequestError("this model takes no batches: ask it by the Open Inference Protocol.", 404)
        samples, is_list = await asyncio.to_thread(samples_of_body, request.body, content_type, signature)
        # Samples with a free axis need not fit together; the model's queue finds those that do.
        size = 1 if signature.max_elements is None else signature.max_batch_size
        answers: list[dict[str, Any]] = []
        for start in range(0, len(samples), size):
            batch = samples[start : start + size]
            inputs = {name: np.concatenate([sample.arrays[name] for sample in batch]) for name in batch[0].arrays}
            outputs = await model.infer(inputs)
            if self._metrics.drift is not None:
                self._metrics.drift.observe(inputs, outputs)
            answers += await asyncio.to_thread(describe_all, signature, batch, outputs)
        for column in (column for sample in samples for column in sample.never_seen):
            self._metrics.never_seen.labels(column).inc()
        return json_response({"predictions": answers} if is_list else answers[0])

    def description(self, request: Request) -> Response:
        return json_response(self._versions.current.describe())

    def page(self, request: Request) -> Response:
        body = (PAGES / self._versions.current.page).read_bytes()
        headers = (("content-security-policy", CONTENT_SECURITY_POLICY),)
        return Response(body, content_type="text/html; charset=utf-8", headers=headers)

    def server(self, request: Request) -> Response:
        version = self._versions.current.metadata.version
        return json_response({"name": PACKAGE, "version": version, "extensions": protocol.EXTENSIONS})

    def health(self, request: Request) -> Response:
        """KServe's client reads the answer, and Triton's its status alone."""
        return json_response({request.path.rpartition("/")[2]: True})

    def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")

    def model(self, request: Request) -> Response:
        return json_response(self._find_model(request).metadata.to_response())

    def config(self, request: Request) -> Response:
        return json_response(self._find_model(request).metadata.to_config())

    def statistics(self, request: Request) -> Response:
        """Since the start of the server, whatever version answered."""
        model = self._versions.current if request.path == "/v2/models/stats" else self._find_model(request)
        named = {"name": model.metadata.name, "version": model.metadata.version}
        return json_response({"model_stats": [{**named, **self._metrics.statistics()}]})

    def index(self, request: Request) -> Response:
        metadata = self._versions.current.metadata
        return json_response([{"name": metadata.name, "version": metadata.version, "state": "READY", "reason": ""}])

    def model_ready(self, request: Request) -> Response:
        self._find_model(request)
        return Response(b"")

    def _find_model(self, request: Request) -> ServedModel:
        """Returns the current model; raises `RequestError` if the path names another model or version."""
        current, parts = self._versions.current, request.path.split("/")
        name, version = parts[3], parts[5] if len(parts) > 5 else None
        served = current.metadata
        if name != served.name or version not in (None, served.version):
            asked = name if version is None else f"{name}, version {version},"
            sentence = f"{asked} is not served here: {served.name}, version {served.version}, is."
            raise RequestError(sentence, 404, "unknown_model")
        return current


def describe_all(signature: Signature, samples: Sequence[Sample], outputs: Arrays) -> list[dict[str, Any]]:
    """Describes outputs `(B, ...)` for people, with the file that a form named, and the values that are not known."""
    answers = []
    for row, sample in enumerate(samples):
        answer = describe(signature, {name: output[row] for name, output in outputs.items()}, every=True)
        of_file = {"file": sample.file} if sample.file else {}
        answers.append({**of_file, **answer, **({"never_seen": sample.never_seen} if sample.never_seen else {})})
    return answers


def decompress(body: bytes, max_bytes: int) -> bytes:
    """Decompresses gzip, or deflate in the format of zlib; raises `RequestError` beyond `max_bytes`, and if damaged."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        decoded = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"the body cannot be decompressed: {error}.") from error
    if len(decoded) > max_bytes:
        raise too_large(max_bytes)
    if not stream.eof or stream.unused_data:
        raise RequestError("the body cannot be decompressed: it ends too early, or something follows it.")
    return decoded


def printable(sentence: str) -> str:
    """Replaces control characters and shortens the sentence: it may hold anything that a client has sent."""
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in sentence)
    return text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE // 2]}...{text[-100:]}"


def json_response(content: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(orjson.dumps(content), status, headers=headers)


def _id_of(request: Request) -> str:
    """Returns the id that the client gave, or a random one."""
    given = request.headers.get(b"x-request-id", b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
