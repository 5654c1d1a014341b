"""What changes is told to all who listen, each version once; who does not read loses its place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest

from service.events import LISTENERS_MAX, WAITING_MAX, Event, Events, Listener
from service.problems import Problem
from tests.unit.service.api import Api
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio


async def told(stream: AsyncIterator[Event], kind: str, count: int = 1) -> list[dict[str, Any]]:
    """Return the next events of a kind."""
    found = []
    async with asyncio.timeout(60):
        async for event in stream:
            if event.kind == kind:
                found.append(json.loads(event.data))
            if len(found) == count:
                break
    return found


def versions(records: list[dict[str, Any]]) -> list[int]:
    return [record["version"] for record in records]


async def test_each_published_version_is_told_once(api: Api, photos):
    """Also those that came between two looks; the records are those of /versions."""
    events = api.model.events
    with events.listener(None) as listener:
        stream = events.events(listener)
        assert [0] == versions(await told(stream, "version"))
        for count in range(1, 6):  # in one go: the service sees the last head alone
            api.publish(photos, learned_through=count)
        records = await told(stream, "version", 5)
        assert [1, 2, 3, 4, 5] == versions(records)
        assert records[::-1] == (await api.client.get("/versions")).json()["versions"]
        await api.served(api.publish(photos, learned_through=6))
        assert [6] == versions(await told(stream, "version"))


async def test_who_comes_again_is_told_what_was_missed(api: Api, photos):
    """From the version after the last that it knows, whether others listened meanwhile or not."""
    events = api.model.events
    for count in range(1, 5):
        await api.served(api.publish(photos, learned_through=count))
    with events.listener(2) as first:
        assert [3, 4] == versions(await told(events.events(first), "version", 2))
        await api.served(api.publish(photos, learned_through=5))
        await until(lambda: events._told == 5)
        for heard, expected in [(2, [3, 4, 5]), (4, [5]), (5, [5]), (99, [5]), (None, [5])]:
            with events.listener(heard) as second:
                stream = events.events(second)
                assert expected == versions(await told(stream, "version", len(expected)))


async def test_a_pin_hides_no_version(api: Api, photos):
    """While an earlier version answers, those that are published are told all the same."""
    events = api.model.events
    for count in (1, 2):
        await api.served(api.publish(photos, learned_through=count))
    assert (await api.client.post("/versions/1/pin")).status_code == 200
    await until(lambda: api.model.serving.current.version == 1)
    with events.listener(None) as listener:
        stream = events.events(listener)
        assert [1, 2] == versions(await told(stream, "version", 2))
        assert 1 == (await told(stream, "learning"))[0]["pinned"]
        api.publish(photos, learned_through=3)
        assert [3] == versions(await told(stream, "version"))
        assert 1 == api.model.serving.current.version


async def test_learning_is_told_when_it_changes(api: Api, photos):
    """Its body is that of GET /learning; what has not changed is not told again."""
    events = api.model.events
    api.stream.report({"batch": 1, "counts": {"samples": 4}})
    with events.listener(None) as listener:
        stream = events.events(listener)
        first = (await told(stream, "learning"))[0]
        assert first == (await api.client.get("/learning")).json()
        await api.teach("cat", photos["cat"])
        second = (await told(stream, "learning"))[0]
        assert (0, 1) == (first["accepted_through"], second["accepted_through"])
        api.stream.report({"reported_at": 1.75e9, "disk_free_bytes": 1 << 30})  # and no more
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await anext(stream)


async def test_a_report_of_something_new_is_told_without_its_time(api: Api):
    """When the learner said so, and how full its disk is, is in GET /learning alone."""
    events = api.model.events
    api.stream.report({"batch": 1, "reported_at": 1.75e9, "disk_free_bytes": 1 << 30})
    with events.listener(None) as listener:
        stream = events.events(listener)
        assert (await told(stream, "learning"))[0]["learner"] == {"batch": 1}
        api.stream.report({"batch": 2, "reported_at": 1.75e9 + 10})
        assert (await told(stream, "learning"))[0]["learner"] == {"batch": 2}
    assert (await api.client.get("/learning")).json()["learner"]["reported_at"] == 1.75e9 + 10


async def test_a_refused_version_is_told(api: Api, photos):
    """With its reason, once."""
    events = api.model.events
    with events.listener(None) as listener:
        stream = events.events(listener)
        await told(stream, "learning")
        api.publish(photos, learned_through=1, damage="classes/0")
        (refused,) = await told(stream, "refused")
        assert 1 == refused["version"]
        assert "damaged" in refused["reason"]


async def test_a_head_is_refused_as_long_as_it_cannot_be_read(api: Api, photos):
    """Once it can it is refused no more, and the next time that is told anew."""
    await api.served(api.publish(photos, learned_through=1))
    log, key, refused = api.stream.client, api.stream.keys.head, api.model.swaps.refused
    head, events = log.get(key), api.model.events
    assert isinstance(head, bytes)
    with events.listener(None) as listener:
        stream = events.events(listener)
        await told(stream, "learning")
        for _ in range(2):
            log.set(key, "torn")
            (about,) = await told(stream, "refused")
            assert (about["version"], "torn" in about["reason"]) == (None, True)
            log.set(key, head)
            await until(lambda: not refused)
            await until(lambda: not events._refused)  # which takes a look


async def test_a_slow_listener_loses_its_place_and_nobody_else(api: Api):
    """What it did not take is let go; others are told, and somebody else may have the place."""
    events = api.model.events
    with ExitStack() as places:
        slow, *others = (places.enter_context(events.listener(None)) for _ in range(LISTENERS_MAX))
        await told(events.events(others[0]), "learning")
        with pytest.raises(Problem, match="too many listen"):
            places.enter_context(events.listener(None))
        for _ in range(WAITING_MAX):
            for listener in others:
                drain(listener)
            events._tell(Event("learning", b"{}"))
        assert [] == [event async for event in events.events(slow)]
        assert others[1].tell(Event("learning", b"{}"))
        places.enter_context(events.listener(None))


def drain(listener: Listener) -> None:
    while not listener._waiting.empty():
        listener._waiting.get_nowait()


def watched(events: Events) -> bool:
    return events._watching is not None


async def test_nobody_looks_when_nobody_listens(api: Api):
    """The watching begins with the first listener and ends after the last."""
    events: Events = api.model.events
    assert not watched(events)
    with events.listener(None) as listener:
        await told(events.events(listener), "learning")
        assert watched(events)
    await until(lambda: not watched(events))


async def test_all_streams_end_with_the_service(api: Api):
    """Listeners return, and no new one is taken."""
    events = api.model.events
    with events.listener(None) as listener:
        await told(events.events(listener), "version")
        events.end()
        assert [] == [event async for event in listener.events()]
        with pytest.raises(Problem):
            events.listener(None).__enter__()
