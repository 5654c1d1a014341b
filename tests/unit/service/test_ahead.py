"""The picture of a query that waits is seen once, while it waits."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from concurrent.futures import Future
from copy import copy
from typing import Any

import pytest

from everlens.model.snapshot import Snapshot
from service.ahead import Seen, seen_by_now
from tests.unit.service.api import Api, pixels_of
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The service's threads that passed pictures through the towers, in order."""
    threads: list[str] = []
    see = Snapshot.see

    def watched(snapshot: Snapshot, pixels, **how):
        if threading.current_thread() is not threading.main_thread():  # which makes versions here
            threads.append(threading.current_thread().name.partition("_")[0])
        return see(snapshot, pixels, **how)

    monkeypatch.setattr(Snapshot, "see", watched)
    return threads


async def seen(api: Api) -> Seen:
    """Return what was seen last, once it is."""
    looking = api.model.ahead._last
    assert looking is not None
    return await asyncio.wrap_future(looking)


async def test_a_waiting_picture_is_seen_once(api: Api, photos, seeing: list[str]):
    """The pass is made before the version is there, even the first; then only scores are left."""
    await api.teach("rocket", photos["rocket"], id="rocket")
    asking = asyncio.create_task(api.ask(photos["rocket"], wait_for="rocket"))
    await until(lambda: seeing)
    await seen(api)
    await api.served(api.publish(photos, learned_through=1))
    waited = (await asking).json()
    assert seeing == ["ahead"]
    asked = (await api.ask(photos["rocket"])).json()
    assert seeing == ["ahead", "model"]
    for name in ("predictions", "known", "version"):
        assert waited[name] == asked[name]


async def test_what_other_towers_saw_is_seen_again(api: Api, photos):
    """A version with another top has views of its own; a picture beside it keeps those it has."""
    base = api.model.serving.base
    looking = api.model.ahead.look(pixels_of(photos["cat"], base))
    assert looking is not None
    before = await seen(api)
    assert before.holds_for(base)
    others: list[dict[str, Any]] = [
        {"trunk": copy(base.trunk)},
        {"frozen_top": copy(base.frozen_top)},
        {"tuned_top": base.frozen_top},
    ]
    for other in others:
        assert not before.holds_for(dataclasses.replace(base, **other))


async def test_nothing_is_seen_ahead_while_others_ask(api: Api, photos, seeing: list[str]):
    """Their pictures and this one are seen faster together; and one at a time is."""
    picture = pixels_of(photos["cat"], api.model.serving.base)
    with api.model.batcher.places(1):
        assert api.model.ahead.look(picture) is None
    assert seeing == []
    free = threading.Event()
    held = api.model.ahead._thread.submit(free.wait)
    first = api.model.ahead.look(picture)
    assert first is not None
    assert api.model.ahead.look(picture) is None
    free.set()
    await asyncio.wrap_future(held)
    await seen(api)
    assert api.model.ahead.look(picture) is not None


async def test_who_need_not_wait_is_answered_by_the_model_thread(
    api: Api, photos, seeing: list[str]
):
    """What is learnt already is no reason to look ahead."""
    await api.teach("cat", photos["cat"], id="cat")
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
    assert (await api.ask(photos["cat"], wait_for="cat")).status_code == 200
    assert seeing == ["model"]


def test_what_is_not_there_yet_is_not_waited_for():
    """Nor what failed: then the model thread sees the picture, or says why it cannot."""
    looking: Future[Seen] = Future()
    assert seen_by_now(looking) is None
    looking.set_exception(MemoryError())
    assert seen_by_now(looking) is None
    assert seen_by_now(None) is None
