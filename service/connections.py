"""
What a connection may cost before it has asked anything: seconds, bytes, and a place. ①

uvicorn bounds none of them: a head may trickle in for ever, and its one cap refuses whoever comes
next. Here a late or endless head ends its own connection. Where too many clients owe us bytes, the
one that has owed them longest goes, at the address that holds the most: refusing the newcomer would
let slow clients shut everybody else out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.limits import HEAD_BYTES_MAX, head_too_large
from service.problems import Problem
from service.rates import network

# From the connection, or the first byte of a later request, to the end of the head. A head is one
# packet; ten seconds outlast a few lost ones.
HEAD_S = 10.0
# An idle connection stays longer than the 60 s after which common proxies drop theirs: whoever
# closes first never meets a request on its way.
KEEP_ALIVE_S = 65
# Until a client has read what waits for it, some 64 kB.
SEND_S = 30.0
# Between our last word and the end of a refused connection: closed at once with bytes unread, it
# would be reset, and the client would not hear why.
_LINGER_S = 2.0
# Connections that owe us bytes, idle ones too. Under half of the 1,024 descriptors that a process
# has where nobody gave it more; the other half is for requests that are being answered.
OWING_MAX = 480


class Owing:
    """
    The connections that owe us a request or the rest of one, the longest-owing first.

    Args:
        closed: called for each that is closed because there are too many.
        connections_max: how many there may be.
    """

    def __init__(self, closed: Callable[[], None], *, connections_max: int = OWING_MAX) -> None:
        self.closed = closed
        self.connections_max = connections_max
        self.count = 0
        self._of: dict[str | bytes, dict[Connection, None]] = {}

    def add(self, connection: Connection) -> None:
        """Note that a connection owes from now on."""
        self.remove(connection)
        self._of.setdefault(connection.address, {})[connection] = None
        self.count += 1
        if self.count > self.connections_max:
            most = max(self._of, key=lambda address: len(self._of[address]))
            longest = next(iter(self._of[most]))
            self.remove(longest)
            self.closed()
            longest.transport.abort()

    def remove(self, connection: Connection) -> None:
        """Note that a connection owes nothing, or is gone."""
        neighbours = self._of.get(connection.address, {})
        if connection not in neighbours:
            return
        del neighbours[connection]
        self.count -= 1
        if not neighbours:
            del self._of[connection.address]


class Connection(HttpToolsProtocol):
    """
    One client's connection.

    Args:
        owing: shared by all connections of the server.
        refused: called with the kind of each refusal.
        head_s: see `HEAD_S`.
        send_s: see `SEND_S`.
        uvicorn: what uvicorn gives its protocols.
    """

    def __init__(
        self,
        *,
        owing: Owing,
        refused: Callable[[str], None],
        head_s: float = HEAD_S,
        send_s: float = SEND_S,
        **uvicorn: Any,
    ) -> None:
        super().__init__(**uvicorn)
        self.owing = owing
        self.refused = refused
        self.head_s = head_s
        self.send_s = send_s
        self.address: str | bytes = ""
        self._refused = False
        self._in_head = True
        self._advanced = False
        self._idle_bytes = 0  # since the last that belonged to a body or ended a head
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a request's head is here and its answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Corked(transport, self.loop))
        self.address = network(self.client[0] if self.client else "")
        self._head_timer = self.loop.call_later(self.head_s, self._head_is_late)
        self.owing.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.owing.remove(self)
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in what came; bytes that are no body and end no head are counted."""
        if self._refused:
            return
        self._advanced = False
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        self._idle_bytes = 0 if self._advanced else self._idle_bytes + len(data)
        if self._idle_bytes > HEAD_BYTES_MAX:
            self._refuse(head_too_large())
        elif self.answering:
            self._disarm()
        elif self._head_timer is None:
            # Also for what trickles in after an answer that did not wait for its body.
            self._head_timer = self.loop.call_later(self.head_s, self._head_is_late)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head, and none of a trailer, which nobody has looked at."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._in_head = False
        self._advanced = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the whole request is here; it owes the next one where it was answered before."""
        self._advanced = True
        if self.answering:
            self.owing.remove(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self.transport.is_closing() and not self.answering:
            self.owing.add(self)

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, after the answers to what was."""
        if self.answering and not self.cycle.more_body:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self._refuse(_NOT_HTTP)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._idle_bytes:
            self.transport.close()
            return
        detail = f"the head was not here after {self.head_s:g} s; send it in one piece"
        self._refuse(Problem("head-timeout", detail))

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, problem: Problem) -> None:
        """Answer beside the application, which may not have seen a request, and close."""
        self._disarm()
        self.refused(problem.kind)
        if self.answering:
            # The application waits for the rest of a body that will not come; its answer is moot.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        response = problem.response("", {"Connection": "close"})
        fields = [*self.server_state.default_headers, *response.raw_headers]
        lines = [STATUS_LINE[problem.status], *(b"%b: %b\r\n" % field for field in fields), b"\r\n"]
        self.transport.write(b"".join(lines) + bytes(response.body))
        self.transport.write_eof()
        self._refused = True
        self._head_timer = self.loop.call_later(_LINGER_S, self.transport.abort)


class _Corked:
    """
    A transport that sends an answer's head with its body.

    uvicorn writes one after the other, and uvloop sends each at once: two packets, for which
    the client wakes twice. What is written first waits for the second, or the loop's next turn.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, content: bytes) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.writelines([held, content])
        elif content:
            self._held = content
            self._loop.call_soon(self._flush)

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)


_NOT_HTTP = Problem("bad-request", "this is not HTTP/1.1 as we read it; check what sends it")
