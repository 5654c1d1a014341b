"""A body costs only so many bytes and seconds, whoever sends it and however."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from service.limits import HEAD_BYTES_MAX, BodyLimits, Pace
from service.problems import Problem
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio


async def reader(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads its body and says how long it was."""
    try:
        content = await Request(scope, receive).body()
    except Problem as problem:
        await problem.response(scope["path"])(scope, receive, send)
        return
    await PlainTextResponse(str(len(content)))(scope, receive, send)


async def exchange(
    chunks: AsyncIterator[bytes], headers: Sequence[tuple[bytes, bytes]] = (), **limits: Any
) -> tuple[int, dict[bytes, bytes], bytes, int]:
    """Send a request with these chunks; return status, headers, body, how much was not read."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    sent: list[Message] = []

    async def fill() -> None:
        async for chunk in chunks:
            messages.put_nowait({"type": "http.request", "body": chunk, "more_body": True})
        messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    filling = asyncio.create_task(fill())

    async def receive() -> Message:
        return await messages.get()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": list(headers)}
    await BodyLimits(reader, **({"bytes_max": 100} | limits))(scope, receive, send)
    filling.cancel()
    start = sent[0]
    content = b"".join(message.get("body", b"") for message in sent[1:])
    assert not sent[-1].get("more_body", False)
    return start["status"], dict(start["headers"]), content, messages.qsize()


async def pieces(*chunks: bytes, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(pause_s)


async def test_a_body_at_the_limit_passes():
    """A body of exactly the limit reaches the application whole."""
    status, _, content, _ = await exchange(pieces(bytes(60), bytes(40)))
    assert (status, content) == (200, b"100")


async def test_an_announced_length_is_refused_unread():
    """A Content-Length over the limit is a 413 before the application sees the request."""
    seen = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    sent: list[Message] = []

    async def receive() -> Message:
        assert sent, "the answer comes before the body is read"
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/x", "headers": [(b"content-length", b"101")]}
    await BodyLimits(application, bytes_max=100)(scope, receive, send)
    assert sent[0]["status"] == 413
    assert not seen


async def test_an_unannounced_length_is_counted():
    """A body without Content-Length is a 413 as soon as it is over the limit."""
    status, headers, content, left = await exchange(pieces(*[bytes(50)] * 10))
    assert status == 413
    assert headers[b"connection"] == b"close"
    assert json.loads(content)["type"] == "/problems/body-too-large"
    assert not left, "what the client still sends is read on, so that it hears the answer"


async def test_an_understated_length_is_counted():
    """A body longer than its Content-Length is counted all the same."""
    status, *_ = await exchange(pieces(bytes(101)), [(b"content-length", b"5")])
    assert status == 413


async def test_a_trickling_body_ends_at_the_deadline():
    """A body that comes byte by byte is a 408 at an absolute deadline, not after each byte anew."""
    pace = Pace(grace_s=10, bytes_per_s=1, body_s=0.2)
    status, headers, *_ = await exchange(pieces(*[b"x"] * 90, pause_s=0.02), pace=pace)
    assert status == 408
    assert headers[b"connection"] == b"close"


async def test_a_body_below_the_rate_ends_before_the_deadline():
    """After a first moment only bytes buy time: a trickle is a 408 long before the deadline."""
    pace = Pace(grace_s=0.2, bytes_per_s=1000, body_s=60)
    status, headers, content, _ = await exchange(pieces(*[b"x"] * 90, pause_s=0.05), pace=pace)
    assert status == 408
    assert headers[b"connection"] == b"close"
    assert json.loads(content)["type"] == "/problems/body-timeout"


async def test_a_body_at_the_rate_may_take_its_time():
    """A line that keeps the rate is waited for, well beyond the first moment."""
    pace = Pace(grace_s=0.2, bytes_per_s=5, body_s=60)
    status, _, content, _ = await exchange(pieces(*[bytes(5)] * 12, pause_s=0.05), pace=pace)
    assert (status, content) == (200, b"60")


async def test_large_bodies_give_way_to_small_ones():
    """When the bodies of all requests together are too much, the large are refused with 503."""
    holding = asyncio.Event()
    layer = BodyLimits(reader, bytes_max=100, held_bytes_max=250)

    async def send_body(size: int) -> int:
        messages = [
            {"type": "http.request", "body": bytes(size), "more_body": True},
            {"type": "http.request", "body": b"", "more_body": False},
        ]
        sent: list[Message] = []

        async def receive() -> Message:
            if len(messages) == 1 and not sent:
                await holding.wait()
            return messages.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        await layer({"type": "http", "path": "/x", "headers": []}, receive, send)
        return int(sent[0]["status"])

    first = [asyncio.create_task(send_body(80)) for _ in range(2)]
    await until(lambda: layer.free_bytes == 250 - 2 * 80)
    large, small = asyncio.create_task(send_body(80)), asyncio.create_task(send_body(20))
    await until(lambda: large.done() and layer.free_bytes == 250 - 2 * 80 - 20)
    holding.set()
    assert [await task for task in (*first, large, small)] == [200, 200, 503, 200]
    assert layer.free_bytes == 250


async def test_a_client_that_leaves_is_no_error_of_ours():
    """A connection that closes within the body is the client's fault: no exception, no 500."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/x", "headers": []}
    await BodyLimits(reader, bytes_max=100)(scope, receive, send)
    assert sent[0]["status"] == 400


@pytest.mark.parametrize("where", ["path", "query", "header", "headers"])
async def test_a_head_over_the_limit_is_refused(where):
    """An address or headers over the limit are a 431, however the bytes are spread."""
    long = b"a" * (HEAD_BYTES_MAX + 1)
    scope: Scope = {
        "type": "http",
        "path": "/x",
        "raw_path": b"/" + long if where == "path" else b"/x",
        "query_string": long if where == "query" else b"",
        "headers": {"header": [(b"x", long)], "headers": [(b"x", b"")] * HEAD_BYTES_MAX}.get(
            where, []
        ),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await BodyLimits(reader, bytes_max=100)(scope, receive, send)
    assert sent[0]["status"] == 431


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"5"), (b"content-length", b"6")],
        [(b"content-length", b"five")],
        [(b"content-length", b"-5")],
        [(b"content-length", "٥".encode())],
    ],
)
async def test_ambiguous_lengths_are_refused(headers):
    """Both length headers, one twice, or one that is no number are a 400."""
    status, _, content, _ = await exchange(pieces(b"12345"), headers)
    assert status == 400
    assert json.loads(content)["type"] == "/problems/bad-request"
