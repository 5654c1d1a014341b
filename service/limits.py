"""
What a request's body may cost before anybody parses it: bytes and seconds. ①

An ASGI layer, since uvicorn bounds neither. A refused body is read on for a moment after the
answer, unseen: a client that still sends would otherwise lose the answer to a reset connection.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import Problem

BODY_S = 30.0
_DRAIN_S = 5.0


class BodyLimits:
    """Refuses bodies over `bytes_max` or slower than `body_s`, and ambiguous lengths."""

    def __init__(self, app: ASGIApp, *, bytes_max: int, body_s: float = BODY_S) -> None:
        self.app = app
        self.bytes_max = bytes_max
        self.body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive, send, self.bytes_max, self.body_s)
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, body.receive, body.send)
            return
        body.refused = True
        await refusal.response(scope["path"])(scope, body.receive, body.send)

    def _refusal(self, scope: Scope) -> Problem | None:
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        if len(lengths) > 1 or (lengths and chunked):
            # Two readers of such a request may see two different bodies.
            return Problem("bad-request", "send Content-Length or Transfer-Encoding, and only once")
        if lengths and not lengths[0].isdigit():
            return Problem("bad-request", "Content-Length is not a number")
        if lengths and int(lengths[0]) > self.bytes_max:
            return _too_large(self.bytes_max)
        return None


def _too_large(bytes_max: int) -> Problem:
    return Problem(
        "body-too-large",
        f"the body is over {bytes_max} bytes; send smaller pictures or fewer in one request",
    )


class _Body:
    """One request's body on its way in, and the answer on its way out."""

    def __init__(self, receive: Receive, send: Send, bytes_max: int, body_s: float) -> None:
        self._receive = receive
        self._send = send
        self.bytes_max = bytes_max
        self.bytes = 0
        self.complete = False
        self.refused = False
        self.body_s = body_s
        self.deadline = asyncio.get_running_loop().time() + body_s

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()  # only the disconnect is still to come
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self._receive()
        except TimeoutError:
            self.refused = True
            raise Problem(
                "body-timeout", f"the body was not here after {self.body_s:g} s; send it again"
            ) from None
        self.complete = not message.get("more_body", False)
        self.bytes += len(message.get("body", b""))
        if self.bytes > self.bytes_max:
            self.refused = True
            raise _too_large(self.bytes_max)
        return message

    async def send(self, message: Message) -> None:
        if not self.refused:
            await self._send(message)
            return
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        if message["type"] != "http.response.body" or message.get("more_body", False):
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._drain()
        await self._send({"type": "http.response.body", "body": b""})

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(self.deadline, loop.time() + _DRAIN_S)):
                while not self.complete:
                    message = await self._receive()
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            return
