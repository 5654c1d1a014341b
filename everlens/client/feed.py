"""
The service's events: server-sent events (the HTML standard, 9.2) → records.

Bytes in, records out; `clients` holds the connection. Own lines, since httpx also ends them at
U+2028, which a class's name may hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from everlens.client.refusals import Patience, problem
from everlens.client.results import Event, Learning, RefusedVersion, VersionRecord, read
from everlens.client.steps import Reply

_KINDS: dict[str, type[Event]] = {
    "version": VersionRecord,
    "learning": Learning,
    "refused": RefusedVersion,
}
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r(?!\n))")
_PENDING_MAX = 16 * 2**20  # bytes of one event


class Feed:
    """
    What came of one stream of events, across its connections.

    Args:
        patience_s: how long a service is waited for that went away, or says "later".
    """

    def __init__(self, patience_s: float) -> None:
        self._patience = Patience(patience_s)
        self._last_id = ""
        self._pending = b""
        self._name = ""
        self._data: list[str] = []
        self._said: dict[str, Event] = {}

    @property
    def headers(self) -> dict[str, str]:
        """Those of the next connection; the service goes on after what was heard."""
        about = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        return about | ({"Last-Event-ID": self._last_id} if self._last_id else {})

    def opened(self) -> None:
        """Begin a connection; what was half said on the last is never finished."""
        self._patience.answered()
        self._pending, self._name, self._data = b"", "", []

    def take(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that these bytes complete; what was said before is not said again."""
        self._pending += chunk
        end = 0
        # A CR at the very end may be half of a CR LF.
        whole = len(self._pending) - self._pending.endswith(b"\r")
        for line in _LINE.finditer(self._pending, 0, whole):
            end = line.end()
            event = self._line(line[1].decode("utf-8", "replace"))
            if event is not None:
                yield event
        self._pending = self._pending[end:]
        if len(self._pending) > _PENDING_MAX:
            raise problem(Reply(200, b"an event without an end"))

    def pause_s(self, reply: Reply) -> float:
        """
        Return how long to wait before the next connection.

        Args:
            reply: what the last one ended with; status 0 where it was cut or just ended.

        Raises:
            ApiError: there is no point in another.
        """
        pause_s = self._patience.pause_s(reply)
        if pause_s is None:
            raise problem(reply)
        return pause_s

    def _line(self, line: str) -> Event | None:
        """Take one line; return the event that it ends, if we know its kind and it is news."""
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "event":
                    self._name = value
                case "data":
                    self._data.append(value)
                case "id":
                    self._last_id = value
            return None  # others, like the comments that keep it alive, are of no use to us
        name, data = self._name, "\n".join(self._data)
        self._name, self._data = "", []
        kind = _KINDS.get(name)
        if kind is None or not data:
            return None
        event = read(kind, _json(data))
        if self._said.get(name) == event:
            return None
        self._said[name] = event
        return event


def _json(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None  # `read` says that it is not understood
