"""Work for somebody who leaves ends; for somebody who stays it is done."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import Request
from starlette.types import Message

from service.leaving import unless_left
from service.problems import Problem

pytestmark = pytest.mark.anyio


def asked_by(left: asyncio.Event) -> Request:
    """Return a request whose body was read, of somebody who leaves when the event is set."""

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


async def test_work_ends_where_nobody_waits_for_it() -> None:
    left, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        left.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(Problem, match="closed before the answer"):
        await unless_left(asked_by(left), endless())
    assert ended.is_set()


async def test_what_somebody_waits_for_is_returned_or_raised() -> None:
    async def works() -> int:
        await asyncio.sleep(0.01)
        return 7

    async def fails() -> None:
        raise Problem("busy", "too much")

    stays = asked_by(asyncio.Event())
    assert await unless_left(stays, works()) == 7
    with pytest.raises(Problem, match="too much"):
        await unless_left(stays, fails())


async def test_work_ends_with_its_request() -> None:
    """The server cancels what is not answered when it ends."""
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    asked = asyncio.create_task(unless_left(asked_by(asyncio.Event()), endless()))
    await asyncio.sleep(0.01)
    asked.cancel()
    await asyncio.wait({asked})
    assert asked.cancelled()
    assert ended.is_set()
