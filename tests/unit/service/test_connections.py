"""A connection that asks nothing costs little, and never somebody else's answer: real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.connections import HEAD_S, SEND_S, Connection, Owing
from service.limits import HEAD_BYTES_MAX
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio

TCPI_DATA_SEGS_IN = 152  # its place in Linux's struct tcp_info
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the size of the body; refuses /early unread, and tells /headers what it heard."""
    request = Request(scope, receive)
    if scope["path"] == "/early":
        await PlainTextResponse("no", 404)(scope, receive, send)
        return
    with contextlib.suppress(ClientDisconnect):
        said = str(len(await request.body()))
        if scope["path"] == "/headers":
            said = json.dumps(request.headers.keys())
        if scope["path"] == "/large":
            said = "x" * 20_000_000
        if scope["path"] == "/slow":
            await asyncio.sleep(0.5)
        await PlainTextResponse(said)(scope, receive, send)


class Server:
    """A running server, its port, what it refused, and what it holds of its clients."""

    def __init__(self, **options: Any) -> None:
        self.refused: list[str] = []
        keep_alive_s = options.pop("keep_alive_s", 1)
        limit = {"connections_max": options.pop("owing_max")} if "owing_max" in options else {}
        self.owing = Owing(partial(self.refused.append, "crowded"), **limit)
        protocol = partial(Connection, owing=self.owing, refused=self.refused.append, **options)
        self.server = uvicorn.Server(
            uvicorn.Config(
                application,
                http=cast("type[asyncio.Protocol]", protocol),
                lifespan="off",
                log_config=None,
                timeout_keep_alive=keep_alive_s,
            )
        )
        self.writers: list[asyncio.StreamWriter] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self.listener.getsockname()[1]

    async def connect(
        self, first: bytes = b"", host: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection from a loopback address and say something."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, limit=2**26, local_addr=(host, 0)
        )
        self.writers.append(writer)
        writer.write(first)
        return reader, writer

    async def exchange(self, content: bytes) -> bytes:
        """Return all that comes back until the server closes."""
        reader, _ = await self.connect(content)
        async with asyncio.timeout(60):
            return await reader.read()

    async def ask(self) -> bytes:
        """Return the answer to a healthy client, and close."""
        return await self.exchange(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Server]:
    server = Server(**options)
    running = asyncio.create_task(server.server.serve([server.listener]))
    while not server.server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        for writer in server.writers:
            writer.close()
        await asyncio.gather(
            *(writer.wait_closed() for writer in server.writers), return_exceptions=True
        )
        server.server.should_exit = True
        server.server.force_exit = True
        await running


def check_refusal(answer: bytes, status: int, kind: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert b"application/problem+json" in head
    assert b"connection: close" in head.lower()
    problem = json.loads(body)
    assert (problem["status"], problem["type"]) == (status, f"/problems/{kind}")


async def test_a_trickling_head_ends_at_an_absolute_deadline():
    """Bytes do not put the deadline off: a head of a letter now and then is a 408 in time."""
    async with serving(head_s=0.4) as server:
        began = time.monotonic()
        reader, writer = await server.connect()
        for letter in GET:
            writer.write(bytes([letter]))
            await asyncio.sleep(0.05)
            if server.refused:
                break
        check_refusal(await reader.read(), 408, "head-timeout")
        assert time.monotonic() - began > 0.3
        assert server.refused == ["head-timeout"]


async def test_a_silent_connection_is_closed_without_a_word():
    """Who says nothing gets nothing; neither do line ends alone keep a connection."""
    async with serving(head_s=0.3) as server:
        began = time.monotonic()
        assert await server.exchange(b"") == b""
        assert 0.2 < time.monotonic() - began < HEAD_S / 2
        reader, writer = await server.connect(GET)
        assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
        async with asyncio.timeout(HEAD_S / 2):
            while not server.refused:
                writer.write(b"\r\n")
                await asyncio.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts a connection's segments")
async def test_a_short_answer_is_one_segment():
    """Head and body come together; of a keep-alive connection each answer does."""
    async with serving() as server:
        reader, writer = await server.connect()
        client: socket.socket = writer.get_extra_info("socket")
        for answers in (1, 2, 3):
            writer.write(GET)
            assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
            info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
            assert struct.unpack_from("I", info, TCPI_DATA_SEGS_IN) == (answers,)


async def test_an_idle_connection_is_closed_after_its_time():
    """Between requests a connection may rest, longer than a head may take, but not for ever."""
    async with serving(head_s=0.3, keep_alive_s=2) as server:
        reader, writer = await server.connect(GET)
        await reader.readuntil(b"\r\n\r\n0")
        await asyncio.sleep(0.4)
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n0")
        assert server.owing.count == 1
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        assert server.owing.count == 0


async def test_the_head_of_a_later_request_has_the_same_deadline():
    """A connection that was good once may not trickle afterwards."""
    async with serving(head_s=0.5) as server:
        reader, writer = await server.connect(GET)
        await reader.readuntil(b"\r\n\r\n0")
        writer.write(GET[:-2])
        check_refusal(await reader.read(), 408, "head-timeout")


async def test_an_answer_that_takes_longer_than_a_head_may_is_given():
    """The deadline is for heads: a request under way is left alone."""
    async with serving(head_s=0.4) as server:
        answer = await server.exchange(b"GET /slow HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n0")


@pytest.mark.parametrize("size", [HEAD_BYTES_MAX + 1, 300_000, 5_000_000])
@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"])
async def test_an_endless_head_is_refused(start, size):
    """A line or a field without end, or fields without end, are a 431 long before the memory."""
    async with serving() as server:
        piece = b"a: b\r\n" if start.endswith(b"1.1\r\n") else b"a"
        answer = await server.exchange(start + piece * (size // len(piece) + 1))
        check_refusal(answer, 431, "head-too-large")


async def test_an_endless_trailer_is_refused_and_a_short_one_is_no_head():
    """What follows the last chunk is bounded too, and never becomes a header of the request."""
    chunked = b"POST /headers HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    async with serving() as server:
        reader, _ = await server.connect(chunked + b"Authorization: me\r\n\r\n")
        assert b'["transfer-encoding"]' in await reader.readuntil(b"]")
        answer = await server.exchange(chunked + b"a: b\r\n" * 50_000)
        assert b"431" in answer or answer == b""
        assert "head-too-large" in server.refused


async def test_a_body_that_nobody_reads_does_not_hold_its_connection():
    """After an early answer the rest of the body has as long as a head, however it trickles."""
    async with serving(head_s=0.4) as server:
        head = b"POST /early HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n"
        reader, writer = await server.connect(head)
        await reader.readuntil(b"no")
        async with asyncio.timeout(HEAD_S / 2):
            while server.server.server_state.connections:
                writer.write(b"x")
                await asyncio.sleep(0.02)


async def test_a_body_that_ends_behind_its_answer_is_owed_for_no_more_than_a_request(monkeypatch):
    """The connection is idle then, and counts as one: there are only so many."""
    complete, completed = Connection.on_message_complete, asyncio.Event()

    def completing(connection: Connection) -> None:
        complete(connection)
        completed.set()

    monkeypatch.setattr(Connection, "on_message_complete", completing)
    async with serving() as server:
        head = b"POST /early HTTP/1.1\r\nContent-Length: 5\r\n\r\n"
        reader, writer = await server.connect(head)
        await reader.readuntil(b"no")
        assert server.owing.count == 1
        writer.write(b"12345")
        await asyncio.wait_for(completed.wait(), 60)
        assert len(server.server.server_state.connections) == 1
        assert server.owing.count == 1


async def test_a_client_that_does_not_read_is_left():
    """An answer that nobody takes is dropped after a while, with its connection."""
    async with serving(send_s=0.3) as server:
        began = time.monotonic()
        _, writer = await server.connect(GET.replace(b"/x", b"/large"))
        cast("Any", writer.transport).pause_reading()
        connections = server.server.server_state.connections
        await until(lambda: connections)
        async with asyncio.timeout(SEND_S / 2):
            await until(lambda: not connections)
        assert time.monotonic() - began > 0.3


async def test_slow_clients_do_not_starve_a_healthy_one():
    """Beyond the limit the longest-owing goes, so whoever sends a whole request is answered."""
    async with serving(owing_max=50, head_s=60) as server:
        for _ in range(200):
            await server.connect(b"GET / HTTP/1.1\r\nX-Slow: ")
        await until(lambda: server.refused.count("crowded") == 150)
        assert server.owing.count == 50
        for _ in range(20):
            assert (await server.ask()).startswith(b"HTTP/1.1 200")
        for _ in range(60):
            await server.connect(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        for _ in range(20):
            assert (await server.ask()).startswith(b"HTTP/1.1 200")
        assert server.owing.count <= 50
        assert server.refused.count("crowded") >= 200


async def test_an_address_with_many_slow_connections_loses_its_own():
    """Who holds little keeps it, whatever another address opens."""
    async with serving(owing_max=20, head_s=60) as server:
        patient, writer = await server.connect(host="127.0.0.2")
        await until(lambda: server.owing.count == 1)
        for _ in range(100):
            await server.connect(b"G")
        await until(lambda: len(server.refused) >= 80)
        writer.write(GET)
        assert (await patient.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET x HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\nA: b\rc\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
    ],
)
async def test_what_is_not_http_is_a_problem_too(nonsense):
    """Bytes that are no request of ours are a 400 problem document and the connection's end."""
    async with serving() as server:
        check_refusal(await server.exchange(nonsense), 400, "bad-request")


async def test_nonsense_within_a_body_ends_the_request_too():
    """A chunk that is none is a 400 at once, and the application does not go on waiting for it."""
    async with serving() as server:
        head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        reader, writer = await server.connect(head)
        await until(lambda: len(server.server.server_state.tasks) == 1)
        writer.write(b"nonsense\r\n")
        check_refusal(await reader.read(), 400, "bad-request")
        await until(lambda: not server.server.server_state.tasks)


async def test_nonsense_after_a_request_does_not_take_its_answer():
    """What was asked before is answered; then the connection ends."""
    async with serving() as server:
        answer = await server.exchange(GET.replace(b"/x", b"/slow") + b"\0nonsense")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert answer.count(b"HTTP/1.1") == 1


async def test_pipelined_requests_are_answered_in_their_order():
    """Requests sent without waiting get their answers one after the other, and are all settled."""
    async with serving() as server:
        body = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
        requests = b"".join(body % size + bytes(size) for size in range(20))
        reader, writer = await server.connect(requests)
        for size in range(20):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(len(str(size))) == str(size).encode()
        assert server.owing.count == 1
        writer.close()


async def test_old_clients_are_answered_and_closed():
    """HTTP/1.0 gets one answer and the connection's end."""
    async with serving() as server:
        assert (await server.exchange(b"GET / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\n0")
