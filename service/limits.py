"""
What a request may cost before anybody parses it: bytes, seconds, and memory beside others. ①

An ASGI layer, since uvicorn bounds none of them. A refused body is read on for a moment after the
answer, unseen: a client that still sends would otherwise lose the answer to a reset connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import Problem

# Far more than any address and headers of ours; servers commonly take 8 to 64 kB.
HEAD_BYTES_MAX = 32 * 1024
_DRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How slowly a body may come: a first moment is free, then each byte buys time, up to a deadline.

    An old mobile line (EDGE) carries twice that rate; whoever only holds a place is gone after the
    first moment. The rate is a mean: a line may stall for what it was faster before.
    """

    grace_s: float = 2.0
    bytes_per_s: float = 8000.0
    body_s: float = 30.0

    def allowed_s(self, bytes_received: int) -> float:
        """Return how long after its head a body that is so far along may still be waited for."""
        return min(self.grace_s + bytes_received / self.bytes_per_s, self.body_s)


class BodyLimits:
    """
    Refuses heads and bodies that are too large, bodies that are too slow, and ambiguous lengths.

    Args:
        app: the application.
        bytes_max: of one body.
        held_bytes_max: of all bodies of requests under way together. A body is refused when it is
            larger than what is still free, so that the large ones give way and small ones go on.
        pace: of one body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        bytes_max: int,
        held_bytes_max: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.app = app
        self.bytes_max = bytes_max
        self.free_bytes = 16 * bytes_max if held_bytes_max is None else held_bytes_max
        self.pace = pace or Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refuse(refusal, scope, receive, send)
            return
        body = _Body(receive, send, self)
        try:
            await self.app(scope, body.receive, body.send)
        finally:
            self.free_bytes += body.bytes

    def _refusal(self, scope: Scope) -> Problem | None:
        head_bytes = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        head_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if head_bytes > HEAD_BYTES_MAX:
            return head_too_large()
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        if len(lengths) > 1 or (lengths and chunked):
            # Two readers of such a request may see two different bodies.
            return Problem("bad-request", "send Content-Length or Transfer-Encoding, and only once")
        if lengths and not lengths[0].isdigit():
            return Problem("bad-request", "Content-Length is not a number")
        # Twenty digits are more than any length; int() itself is slow on thousands of them.
        if lengths and (len(lengths[0]) > 20 or int(lengths[0]) > self.bytes_max):
            return _too_large(self.bytes_max)
        return None


def head_too_large() -> Problem:
    """Return the 431."""
    return Problem(
        "head-too-large",
        f"the address and headers are over {HEAD_BYTES_MAX} bytes; put what is long into the body",
    )


async def refuse(
    problem: Problem,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request whose body nobody has read or will read."""
    response = problem.response(scope["path"], headers)
    if _short(scope):
        await response(scope, receive, send)  # the server skips what is left, and may be asked on
        return
    await response(scope, receive, _Unread(receive, send).send)


def _short(scope: Scope) -> bool:
    """Return whether there is no body, or one that is announced with at most five digits."""
    if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        return False
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return not lengths or (len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) <= 5)


def _too_large(bytes_max: int) -> Problem:
    return Problem(
        "body-too-large",
        f"the body is over {bytes_max} bytes; send smaller pictures or fewer in one request",
    )


class _Unread:
    """The answer to a request whose body is read on for a moment, and thrown away."""

    def __init__(self, receive: Receive, send: Send, drain_s: float = _DRAIN_S) -> None:
        self._receive = receive
        self._send = send
        self.drain_s = drain_s

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        if message["type"] != "http.response.body" or message.get("more_body", False):
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._drain()
        await self._send({"type": "http.response.body", "body": b""})

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self.drain_s):
                while (await self._receive()).get("more_body", False):
                    pass
        except TimeoutError:
            return


class _Body:
    """One request's body on its way in, and the answer on its way out."""

    def __init__(self, receive: Receive, send: Send, limits: BodyLimits) -> None:
        self._receive = receive
        self._send = send
        self.limits = limits
        self.bytes = 0
        self.complete = False
        self.refused = False
        self.started = asyncio.get_running_loop().time()

    @property
    def deadline(self) -> float:
        return self.started + self.limits.pace.allowed_s(self.bytes)

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()  # only the disconnect is still to come
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self._receive()
        except TimeoutError:
            self.refused = True
            waited_s = self.limits.pace.allowed_s(self.bytes)
            detail = f"{self.bytes} bytes of the body came in {waited_s:.3g} s; send it faster"
            raise Problem("body-timeout", detail) from None
        if message["type"] == "http.disconnect":
            # Nobody hears it; but it is the client's fault and no error of ours.
            raise Problem("bad-request", "the connection closed before the body was complete")
        self.complete = not message.get("more_body", False)
        self._count(len(message.get("body", b"")))
        return message

    def _count(self, bytes_more: int) -> None:
        self.bytes += bytes_more
        self.limits.free_bytes -= bytes_more
        if self.bytes > self.limits.bytes_max:
            self.refused = True
            raise _too_large(self.limits.bytes_max)
        if bytes_more and self.bytes > self.limits.free_bytes:
            self.refused = True
            detail = "too many large bodies are here at once; send this again, or a smaller one"
            raise Problem("busy", detail, retry_after_s=2)

    async def send(self, message: Message) -> None:
        if not self.refused or self.complete:
            await self._send(message)
            return
        # No longer than the body itself might have taken.
        left_s = self.deadline - asyncio.get_running_loop().time()
        await _Unread(self._receive, self._send, min(left_s, _DRAIN_S)).send(message)
