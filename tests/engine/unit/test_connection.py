"""Connections on real sockets: sizes and waits have a bound, and every answer stands in the order of its request."""

import asyncio
import contextlib
import re
import resource
import sys
from collections.abc import Awaitable, Callable

import pytest

from {{ cookiecutter.package_name }}.engine.serving import connection as module
from {{ cookiecutter.package_name }}.engine.serving.connection import Connection, Request, Response
from {{ cookiecutter.package_name }}.engine.serving.payload import RequestError

MIB = 2**20
HEAD = b"POST /%s HTTP/1.1\r\nHost: x\r\n"


class Echo:
    """Answers with path and size of the body; /slow waits for `go`, /large answers much."""

    def __init__(self) -> None:
        self.open_requests: set[Request] = set()
        self.connections: set[Connection] = set()
        self.max_body_bytes, self.is_draining, self.date = 4 * MIB, False, b"now"
        self.noted: list[tuple[str, int | None]] = []
        self.go = asyncio.Event()

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def check(self, request: Request) -> None:
        if request.path == "/private":
            raise RequestError("a token is needed.", 401, "unauthorized")

    def take(self, request: Request) -> None:
        request.id = "1"
        asyncio.get_running_loop().create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        if request.path == "/slow":
            await self.go.wait()
        if request.refusal is not None:
            request.respond(Response(str(request.refusal).encode(), request.refusal.status))
        elif request.path == "/large":
            request.respond(Response(bytes(12 * MIB)))
        else:
            request.respond(Response(f"{request.method} {request.path} {len(request.body)}".encode()))

    def record(self, request: Request, status: int | None) -> None:
        self.noted.append((request.path, status))


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):  # the server may have ended the connection
            await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        body = await self.reader.readexactly(int(re.search(r"content-length: (\d+)", head)[1]))
        return int(head.split()[1]), body

    async def is_closed(self) -> bool:
        return await self.reader.read(1) == b""


def run(scenario: Callable[[Echo, Callable[[], Awaitable[Client]]], Awaitable[None]]) -> Echo:
    async def main() -> Echo:
        app, clients = Echo(), []
        server = await asyncio.get_running_loop().create_server(lambda: Connection(app), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def connect() -> Client:
            clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
            return clients[-1]

        async def sweep() -> None:
            while True:
                for connection in list(app.connections):
                    connection.sweep()
                await asyncio.sleep(0.02)

        sweeper = asyncio.create_task(sweep())
        async with asyncio.timeout(30):
            await scenario(app, connect)
        sweeper.cancel()
        for client in clients:
            client.writer.close()
        server.close()
        while app.connections:
            await asyncio.sleep(0.01)
        assert not app.open_requests
        return app

    return asyncio.run(main())


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "KEEP_ALIVE_SECONDS", "WRITE_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(module, name, 0.3)


def test_requests_of_any_framing_are_answered_on_one_connection() -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(HEAD % b"a" + b"Content-Length: 3\r\n\r\nabc")
        assert await client.answer() == (200, b"POST /a 3")
        chunks = b"2\r\nab\r\n3;x=1\r\ncde\r\n0\r\nX: y\r\n\r\n"
        await client.send(HEAD % b"b%20c?d=1" + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert await client.answer() == (200, b"POST /b c 5")
        for byte in HEAD % b"slowly" + b"Content-Length: 2\r\n\r\nab":
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.answer() == (200, b"POST /slowly 2")
        await client.send(HEAD % b"large-body" + b"Content-Length: %d\r\n\r\n" % (3 * MIB) + bytes(3 * MIB))
        assert await client.answer() == (200, b"POST /large-body %d" % (3 * MIB))
        await client.send(HEAD % b"e" + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"a")
        assert await client.answer() == (200, b"POST /e 1")
        await client.send(b"GET http://x/absolute HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert await client.answer() == (200, b"GET /absolute 0")
        assert await client.is_closed()
        tunnel = await connect()
        await tunnel.send(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\nmore")
        assert (await tunnel.answer())[0] == 400
        assert await tunnel.is_closed()

    run(scenario)


def test_answers_stand_in_the_order_of_requests_that_were_sent_at_once() -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        get = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
        await client.send(get % b"slow" + get % b"b" + get % b"private" + get % b"d")
        await asyncio.sleep(0.05)
        app.go.set()
        assert await client.answer() == (200, b"GET /slow 0")
        assert await client.answer() == (200, b"GET /b 0")
        assert await client.answer() == (401, b"a token is needed.")
        assert await client.is_closed(), "what follows a refused request is not read"

    run(scenario)


def test_many_requests_at_once_are_not_kept() -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)
        await asyncio.sleep(0.2)
        assert len(app.open_requests) <= module.MAX_WAITING + 1
        app.go.set()
        for _ in range(module.MAX_WAITING):
            assert await client.answer() == (200, b"GET /slow 0")
        assert (await client.answer())[0] == 429
        assert await client.is_closed()

    run(scenario)


def test_bodies_that_follow_a_request_are_not_read_before_it_is_answered() -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client, body = await connect(), b"Content-Length: %d\r\n\r\n" % (3 * MIB) + bytes(3 * MIB)
        client.writer.write(HEAD % b"slow" + b"Content-Length: 0\r\n\r\n" + 8 * (HEAD % b"b" + body))
        await asyncio.sleep(0.3)
        sizes = [len(request.body) + sum(map(len, request.pieces)) for request in app.open_requests]
        assert sum(sizes) < 7 * MIB
        app.go.set()
        assert await client.answer() == (200, b"POST /slow 0")
        for _ in range(8):
            assert await client.answer() == (200, b"POST /b %d" % (3 * MIB))

    run(scenario)


@pytest.mark.parametrize(
    ("start", "piece", "status"),
    [
        (b"GET /", b"a" * 1000, 431),
        (HEAD % b"a" + b"X: ", b"a" * 1000, 431),
        (HEAD % b"a" + b"X", b"a" * 1000, 431),
        (HEAD % b"a", b"X-%d: a\r\n", 431),
        (HEAD % b"a", b"X: a\r\n", 431),
        (HEAD % b"a" + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ", b"a" * 1000, 431),
        (HEAD % b"a" + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X-%d: a\r\n", 431),
        (HEAD % b"a" + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 1000, 431),
        (HEAD % b"a" + b"Transfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + b"a" * 1000 + b"\r\n", 413),
        (HEAD % b"private" + b"Transfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + b"a" * 1000 + b"\r\n", 401),
    ],
)
def test_sender_without_end_is_refused_and_nothing_is_kept(start: bytes, piece: bytes, status: int) -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(20_000):
            await client.send(piece % number if b"%d" in piece else piece)
            if client.writer.is_closing() or len(client.reader._buffer):  # type: ignore[attr-defined]
                break
        assert (await client.answer())[0] == status
        assert await client.is_closed()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        assert grown * (1 if sys.platform == "darwin" else 1024) < 16 * MIB

    run(scenario)


def test_headers_are_counted() -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        for number, answer in ((99, (200, b"POST /a 0")), (100, (431, b"the request has more than 100 headers."))):
            client = await connect()
            await client.send(HEAD % b"a" + b"".join(b"X-%d: a\r\n" % place for place in range(number)) + b"\r\n")
            assert await client.answer() == answer

    run(scenario)


def test_body_and_headers_of_the_largest_size_are_taken() -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        filled = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 300) for number in range(90))
        await client.send(HEAD % b"a" + filled + b"Content-Length: %d\r\n\r\n" % (4 * MIB) + bytes(4 * MIB))
        assert await client.answer() == (200, b"POST /a %d" % (4 * MIB))

    run(scenario)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"", None),
        (b"GET", 408),
        (HEAD % b"a" + b"X: ", 408),
        (HEAD % b"a" + b"Content-Length: 9\r\n\r\na", 408),
        (HEAD % b"a" + b"Content-Length: 1\r\n\r\na", 200),
    ],
)
def test_client_that_falls_silent_is_left(start: bytes, status: int | None) -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(start)
        if status is not None:
            assert (await client.answer())[0] == status
        assert await client.is_closed()

    run(scenario)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("start", [b"GET /", HEAD % b"a" + b"Content-Length: 9999\r\n\r\n"])
def test_client_that_sends_a_byte_now_and_then_is_left(start: bytes) -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(start)
        while app.connections and not app.noted:
            await client.send(b"a")
            await asyncio.sleep(0.05)
        assert (await client.answer())[0] == 408

    run(scenario)


@pytest.mark.usefixtures("short_waits")
def test_answer_waits_for_a_client_that_reads_slowly_but_not_for_one_that_reads_nothing() -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        reading, idle = await connect(), await connect()
        for client in (reading, idle):
            await client.send(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = 0
        while piece := await reading.reader.read(MIB):
            received += len(piece)
            await asyncio.sleep(0.04)
        assert received > 12 * MIB
        while app.connections:
            await asyncio.sleep(0.02)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await idle.answer()

    run(scenario)


def test_client_that_has_stopped_to_send_gets_its_answer_and_one_that_is_gone_is_noted() -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        client.writer.write_eof()
        gone = await connect()
        await gone.send(HEAD % b"half" + b"Content-Length: 9\r\n\r\na")
        await asyncio.sleep(0.05)
        gone.writer.close()
        await asyncio.sleep(0.05)
        app.go.set()
        assert await client.answer() == (200, b"GET /slow 0")
        assert await client.is_closed()

    assert run(scenario).noted == [("/half", None), ("/slow", 200)]


@pytest.mark.parametrize(
    "request_line",
    [b"GET / HTTP/1.1\r\n\r\n", b"GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n"],
)
def test_what_is_no_request_gets_one_sentence(request_line: bytes) -> None:
    async def scenario(app: Echo, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(request_line)
        status, sentence = await client.answer()
        assert status == 400
        assert sentence.startswith(b"the ")
        assert sentence.endswith(b".")

    run(scenario)
