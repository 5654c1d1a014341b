"""Work that ends where whoever asked for it has left: uvicorn by itself lets it go on. ①"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service.problems import Problem

Made = TypeVar("Made")


async def unless_left(request: Request, work: Coroutine[Any, Any, Made]) -> Made:
    """
    Return what the work returns; its body must have been read.

    Raises:
        Problem: the connection closed first. The work was cancelled, and nobody hears it.
    """
    done, left = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Problem("bad-request", "the connection closed before the answer")
        return done.result()
    finally:
        for task in (done, left):
            task.cancel()
        await asyncio.gather(done, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
