"""HTTP/1.1 on one connection, parsed by httptools: every size and every wait has a bound.

A raw ASGI handler on uvicorn or a raw RSGI handler on granian answers fewer requests a second than this does with all
that surrounds a request (decision 0093).
"""

import asyncio
from collections import deque
from enum import Enum, auto
from functools import cache
from http import HTTPStatus
from time import perf_counter
from typing import NamedTuple, Protocol, cast
from urllib.parse import unquote

import httptools

from .payload import RequestError

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 2**10  # the request line and all headers
MAX_WAITING = 32  # requests that a client may send before it has read the answer to the first
PIECE = 4096  # bytes of a head that are parsed before its size is looked at again
HEAD_SECONDS = 20.0  # for all headers
BODY_SECONDS = 20.0  # without a byte of a body that has begun
BODY_BYTES_PER_SECOND = 1024  # the slowest rate of a body, on average after its first BODY_SECONDS
KEEP_ALIVE_SECONDS = 75.0  # longer than load balancers keep a connection, so that they close it first
WRITE_SECONDS = 30.0  # for a client that reads nothing of its answer
LINGER_SECONDS = 2.0  # for which a refused client may go on sending, so that it reads its answer before the end


class Response(NamedTuple):
    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Request:
    """A request; names of headers are in lower case. `refusal` is the reason why the application must not see it."""

    __slots__ = (
        "body",
        "connection",
        "headers",
        "id",
        "is_last",
        "method",
        "path",
        "pieces",
        "refusal",
        "route",
        "size",
        "start",
    )

    def __init__(self, connection: "Connection") -> None:
        self.connection, self.start = connection, perf_counter()
        self.method, self.path, self.route = "-", "-", "none"  # until they have been read
        self.id, self.body = "", b""
        self.headers: dict[bytes, bytes] = {}
        self.pieces: list[bytes] = []
        self.size = 0  # bytes of the body so far
        self.refusal: RequestError | None = None
        self.is_last = False  # on its connection

    def respond(self, response: Response) -> None:
        self.connection.respond(self, response)


class Application(Protocol):
    """What a connection serves."""

    open_requests: set[Request]  # those that have begun to arrive and are not answered
    connections: set["Connection"]
    max_body_bytes: int
    is_draining: bool
    now: float  # seconds, exact to one
    date: bytes  # the same, as HTTP writes it

    def check(self, request: Request) -> None:
        """Called with the head alone; raises `RequestError` for a request that is refused before its body is read."""

    def take(self, request: Request) -> None:
        """Called with a complete or a refused request, which must be given an answer by `request.respond`."""

    def record(self, request: Request, status: int | None) -> None:
        """Called once for each request, after its answer was written; None if the client had gone before."""


class State(Enum):
    IDLE = auto()  # between two requests
    HEAD = auto()
    BODY = auto()
    ENDING = auto()  # nothing more is read
    LINGERING = auto()  # all is answered, and the client may still send


class Connection(asyncio.Protocol):
    """Reads requests, hands them to the application one after another, and writes the answers."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()  # complete or refused, in the order of their answers
        self._state, self._has_ended, self._is_write_paused, self._is_read_paused = State.IDLE, False, False, False
        self._request = Request(self)  # the one that arrives
        self._num_taken = 0  # 1 while the application has a request
        self._num_unread = 0  # bytes since the last progress, which httptools may hold: of a head, or behind a body
        self._num_unsent = 0  # bytes of answers, when the connection was last looked at
        self._deadline = self._app.now + KEEP_ALIVE_SECONDS
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._app.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._app.connections.discard(self)
        unfinished = list(self._waiting)[self._num_taken :]  # the application answers the one that it has taken
        if self._state in (State.HEAD, State.BODY):
            unfinished.append(self._request)
        for request in unfinished:
            self._finish(request, None)
        del self._parser  # it refers to this connection

    def data_received(self, data: bytes) -> None:
        if self._state in (State.ENDING, State.LINGERING):
            return
        try:
            while len(data) > PIECE and self._state is not State.BODY:
                self._feed(data[:PIECE])
                data = data[PIECE:]
            self._feed(data)
        except httptools.HttpParserUpgrade:
            self._state = State.ENDING  # another protocol is not spoken here: this request is the last one
            self._waiting[-1].is_last = True
        except RequestError as error:
            self._refuse(error)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, RequestError) else RequestError("the request is not HTTP/1.1."))
        except httptools.HttpParserError as error:
            self._refuse(RequestError(f"the request is not HTTP/1.1: {str(error) or type(error).__name__}."))

    def _feed(self, data: bytes) -> None:
        if self._state in (State.ENDING, State.LINGERING):
            return
        before = self._state, self._request, self._request.size
        self._parser.feed_data(data)
        if before != (self._state, self._request, self._request.size):
            self._num_unread = 0
        elif self._state is not State.IDLE:
            # httptools keeps a header that has not ended, and there are headers behind a body too.
            self._num_unread += len(data)
            if self._num_unread > MAX_HEAD_BYTES:
                raise _head_too_large()

    def eof_received(self) -> bool:
        """A client may stop to send and still read its answers."""
        self._has_ended = True
        if self._state in (State.HEAD, State.BODY) or not self._waiting:
            return False
        self._state = State.ENDING
        self._waiting[-1].is_last = True
        return True

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._deadline = self._app.now + WRITE_SECONDS

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._go_on()

    # httptools calls these.

    def on_message_begin(self) -> None:
        if len(self._waiting) >= MAX_WAITING:
            raise RequestError(f"{MAX_WAITING} requests wait on this connection already.", 429, "queue_full")
        self._request = Request(self)
        self._app.open_requests.add(self._request)
        self._state = State.HEAD
        self._deadline = self._app.now + HEAD_SECONDS
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._state is State.BODY:  # behind a body in chunks, where nothing is expected
            return
        headers = self._request.headers
        headers[name.lower()] = value
        if len(headers) > MAX_HEADERS:
            raise RequestError(f"the request has more than {MAX_HEADERS} headers.", 431, "too_large")

    def on_headers_complete(self) -> None:
        request, parser = self._request, self._parser
        request.method = parser.get_method().decode("ascii")
        request.path = _path(self._url)
        is_modern = parser.get_http_version() == "1.1"
        request.is_last = not (is_modern and parser.should_keep_alive())
        self._state = State.BODY
        self._begun = self._app.now
        self._deadline = self._begun + BODY_SECONDS
        if is_modern and b"host" not in request.headers:
            raise RequestError("the request has no header 'Host', which HTTP/1.1 asks for.")
        self._app.check(request)
        if request.headers.get(b"expect", b"").lower() == b"100-continue" and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        request = self._request
        request.size += len(piece)
        if request.size > self._app.max_body_bytes:  # a body in chunks has no length in its headers
            raise too_large(self._app.max_body_bytes)
        request.pieces.append(piece)
        last = self._begun + request.size / BODY_BYTES_PER_SECOND
        self._deadline = min(self._app.now, last) + BODY_SECONDS

    def on_message_complete(self) -> None:
        request = self._request
        request.body = request.pieces[0] if len(request.pieces) == 1 else b"".join(request.pieces)
        request.pieces.clear()
        self._state = State.ENDING if request.is_last else State.IDLE
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        self._waiting.append(request)
        self._go_on()
        if len(self._waiting) > 1 and not self._is_read_paused:
            self._is_read_paused = True
            self._transport.pause_reading()

    def _refuse(self, error: RequestError) -> None:
        """Answers what is not parsed any further, after the requests before it, and ends the connection."""
        if self._state in (State.ENDING, State.LINGERING):
            return  # it was the last request, and what follows it is not read
        request = self._request if self._state in (State.HEAD, State.BODY) else Request(self)
        self._app.open_requests.add(request)
        request.refusal, request.is_last = error.with_traceback(None), True
        request.pieces.clear()
        self._state = State.ENDING
        self._enqueue(request)

    def respond(self, request: Request, response: Response) -> None:
        """Writes head and body at once: a server that is killed between the two would have sent half an answer."""
        if self.is_lost:
            self._finish(request, None)
            return
        self._waiting.popleft()
        self._num_taken = 0
        may_send_more = request.refusal is not None and not self._has_ended
        is_last = request.is_last or (self._app.is_draining and not self._waiting)
        head = [_status_line(response.status, response.content_type), b"content-length: %d\r\n" % len(response.body)]
        head += [f"{name}: {value}\r\n".encode("latin-1") for name, value in response.headers]
        head.append(b"x-request-id: %b\r\ndate: %b\r\n" % (request.id.encode("latin-1"), self._app.date))
        head.append(b"connection: close\r\n\r\n" if is_last else b"\r\n")
        if request.method != "HEAD":
            head.append(response.body)
        self._deadline = self._app.now + (WRITE_SECONDS if is_last else KEEP_ALIVE_SECONDS)
        self._transport.write(b"".join(head))
        self._finish(request, response.status)
        if not is_last:
            self._go_on()
            return
        self._state = State.LINGERING
        if may_send_more and self._transport.can_write_eof():
            self._deadline = self._app.now + LINGER_SECONDS
            self._resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()

    def _go_on(self) -> None:
        if self._waiting and not self._num_taken and not self._is_write_paused:
            self._num_taken = 1
            self._app.take(self._waiting[0])
        if len(self._waiting) <= 1:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self._is_read_paused:
            self._is_read_paused = False
            self._transport.resume_reading()

    def _finish(self, request: Request, status: int | None) -> None:
        self._app.open_requests.discard(request)
        self._app.record(request, status)
        # Large bodies must not wait for the garbage collector, which is called seldom.
        request.body, request.refusal = b"", None
        request.pieces.clear()

    def sweep(self) -> None:
        """Ends the connection if its client is too slow; called once a second."""
        num_unsent = self._transport.get_write_buffer_size()
        if num_unsent < self._num_unsent:  # the client reads
            self._deadline = max(self._deadline, self._app.now + WRITE_SECONDS)
        self._num_unsent = num_unsent
        if self._app.now < self._deadline or (self._num_taken and not self._is_write_paused):
            return
        if self._is_write_paused or self._state is State.LINGERING:
            self._transport.abort()
        elif self._state is State.IDLE:
            self._transport.close()
        else:
            self._refuse(RequestError("the request did not arrive in time.", HTTPStatus.REQUEST_TIMEOUT, "timeout"))

    def drain(self) -> None:
        """Ends the connection once its requests are answered."""
        if self._state in (State.IDLE, State.LINGERING) and not self._waiting:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


def too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the body is larger than the {max_bytes:,} bytes that are taken.", 413, "too_large")


def _head_too_large() -> RequestError:
    sentence = f"the request line and the headers are larger than the {MAX_HEAD_BYTES:,} bytes that are taken."
    return RequestError(sentence, 431, "too_large")


def _path(url: bytes) -> str:
    """Returns the path of a request, decoded and without its query."""
    path = url
    if not url.startswith(b"/"):
        try:
            path = httptools.parse_url(url).path or b"/"
        except httptools.HttpParserInvalidURLError as error:
            raise RequestError("the address in the request line is not valid.") from error
    path = path.partition(b"?")[0].partition(b"#")[0]
    return unquote(path.decode("latin-1")) if b"%" in path else path.decode("latin-1")


@cache
def _status_line(status: int, content_type: str) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n".encode("latin-1")
