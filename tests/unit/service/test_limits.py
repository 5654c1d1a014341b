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

from service.limits import BodyLimits
from service.problems import Problem

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
    started = asyncio.get_running_loop().time()
    status, headers, *_ = await exchange(pieces(*[b"x"] * 90, pause_s=0.02), body_s=0.2)
    assert status == 408
    assert headers[b"connection"] == b"close"
    assert asyncio.get_running_loop().time() - started < 1


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"5"), (b"content-length", b"6")],
        [(b"content-length", b"five")],
        [(b"content-length", b"-5")],
    ],
)
async def test_ambiguous_lengths_are_refused(headers):
    """Both length headers, one twice, or one that is no number are a 400."""
    status, _, content, _ = await exchange(pieces(b"12345"), headers)
    assert status == 400
    assert json.loads(content)["type"] == "/problems/bad-request"
