"""
What changes, told to everybody who listens: versions, the state of learning, refusals. ⑧

One look for all listeners, and none while nobody listens. A listener that does not take what it is
told loses its place; it comes again with the last version that it heard of, and is told the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import orjson

from everlens.bus.versions import Follower
from everlens.errors import BusError
from service.hotswap import HotSwap
from service.present import BASE_VERSION
from service.problems import Problem
from service.serving import Serving

LISTENERS_MAX = 32
WAITING_MAX = 256  # events that a listener has not taken
BACK_MAX = 128  # versions that are told after the fact

_LOOK_S = 1.0

# What the learner's report has of the moment, and not of learning.
_MOMENTARY = {"reported_at", "disk_free_bytes"}

log = logging.getLogger(__name__)


class Event(NamedTuple):
    """One thing that changed: its kind, a JSON object, and for a version its number."""

    kind: str
    data: bytes
    version: int | None = None


class Listener:
    """The events that one client has not taken yet."""

    def __init__(self, missed: range) -> None:
        self.missed = missed  # versions that were told since it last listened
        self._waiting: asyncio.Queue[Event | None] = asyncio.Queue(WAITING_MAX)

    def tell(self, event: Event) -> bool:
        """Add an event; return False, and end, when too many wait."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self.end()
            return False
        return True

    def end(self) -> None:
        """Let `events` return; what waits is not told."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        """Yield what it is told, until it ends."""
        while (event := await self._waiting.get()) is not None:
            yield event


class Events:
    """
    Tells listeners of every version once it answers here, and of learning at most once a second.

    Args:
        serving: whose swaps are told.
        follower: of the lineage.
        swaps: for the versions that were refused.
        learning: what `GET /learning` says now.
    """

    def __init__(
        self,
        serving: Serving,
        follower: Follower,
        swaps: HotSwap,
        learning: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self.serving = serving
        self.follower = follower
        self.swaps = swaps
        self.learning = learning
        self._listeners: set[Listener] = set()
        self._watching: asyncio.Task[None] | None = None
        self._ended = False
        self._forget()

    def _forget(self) -> None:
        self._told = 0  # the last version
        self._refused: set[str] = set()
        self._present: dict[str, Event] = {}  # what a new listener hears first, by kind
        self._looked_at = float("-inf")  # at learning

    @contextlib.contextmanager
    def listener(self, heard: int | None) -> Iterator[Listener]:
        """
        Give a new listener: it hears the present state, then what changes.

        Args:
            heard: the last version that it knows; it also hears of those since.

        Raises:
            Problem: 503 where there are too many.
        """
        if self._ended or len(self._listeners) >= LISTENERS_MAX:
            raise Problem("busy", "too many listen already; ask again later", retry_after_s=30)
        if self._watching is None:
            self._told = self.serving.current.version - 1
            self._watching = asyncio.create_task(self._watch())
        before = self._told - ("version" in self._present)
        first = before if heard is None else max(heard, before - BACK_MAX)
        listener = Listener(range(first + 1, before + 1))
        for event in self._present.values():
            listener.tell(event)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def events(self, listener: Listener) -> AsyncIterator[Event]:
        """Yield what a listener missed, how things are, and what changes, until it ends."""
        with contextlib.suppress(BusError):
            for event in await self._versions(listener.missed):
                yield event
        async for event in listener.events():
            yield event

    def end(self) -> None:
        """Let every listener's events end, and take no new one."""
        self._ended = True
        for listener in self._listeners:
            listener.end()
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        try:
            while self._listeners:
                swapped = self.serving.swapped
                try:
                    await self._look()
                except BusError:
                    pass  # the log is away: what changed meanwhile is told when it is back
                except Exception:  # nobody would be told anything any more
                    log.exception("looking for what changed failed; trying again")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await swapped.wait()
        finally:
            self._watching = None
            self._forget()

    async def _look(self) -> None:
        """Tell what changed since the last look."""
        now, first = asyncio.get_running_loop().time(), not self._present
        learning = None
        if now - self._looked_at >= _LOOK_S:
            learning, self._looked_at = await self.learning(), now
        last = self.serving.current.version
        if learning is not None and learning["pinned"] is not None:
            last = self._told + BACK_MAX  # those that would answer, but for the pin
        for event in await self._versions(range(max(self._told, last - BACK_MAX) + 1, last + 1)):
            assert event.version is not None
            self._told = event.version
            self._tell(event)
        self._tell_refused(first=first)
        if learning is not None:
            event = Event("learning", orjson.dumps(_lasting(learning)))
            if event != self._present.get("learning"):
                self._tell(event)

    async def _versions(self, numbers: range) -> list[Event]:
        """Return those versions that are remembered, up to the first that is not published yet."""
        events = []
        for version in numbers:
            record = await self.follower.record(version) if version else BASE_VERSION
            if record is not None:
                events.append(Event("version", orjson.dumps(record), version))
            elif version > self.serving.current.version:
                break
        return events

    def _tell_refused(self, *, first: bool) -> None:
        self._refused &= self.swaps.refused.keys()  # what is refused once more is told once more
        for digest in self.swaps.refused.keys() - self._refused:
            self._refused.add(digest)
            if not first:  # those from before stand in `learning`
                refused = asdict(self.swaps.refused[digest])
                self._tell(Event("refused", orjson.dumps(refused)), present=False)

    def _tell(self, event: Event, *, present: bool = True) -> None:
        if present:
            self._present[event.kind] = event
        self._listeners = {listener for listener in self._listeners if listener.tell(event)}


def _lasting(learning: dict[str, Any]) -> dict[str, Any]:
    """Return how learning is without what the learner says anew each ten seconds, come what may."""
    learner = {name: value for name, value in learning["learner"].items() if name not in _MOMENTARY}
    return learning | {"learner": learner}
