"""The bounded pool in which pictures are opened, so that none of them stalls the event loop. ①"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.problems import Problem

THREADS = 2
WAIT_S = 10.0

Result = TypeVar("Result")


class DecodingPool:
    """Runs work on pictures in a few threads, first come first served."""

    def __init__(self, threads: int = THREADS, wait_s: float = WAIT_S) -> None:
        self.wait_s = wait_s
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._free = asyncio.Semaphore(threads)

    async def run(self, work: Callable[[], Result]) -> Result:
        """
        Return what `work` returns.

        Raises:
            Problem: 503 when no thread was free for `wait_s`.
        """
        try:
            async with asyncio.timeout(self.wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise Problem(
                "busy", "too many pictures wait to be decoded; send this again", retry_after_s=2
            ) from None
        try:
            # Shielded, since the thread goes on when the client has left: its place stays taken.
            running = asyncio.get_running_loop().run_in_executor(self._executor, work)
        except BaseException:
            self._free.release()
            raise
        running.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(running)

    def close(self) -> None:
        """Take no more work; what runs is let run."""
        self._executor.shutdown(wait=False, cancel_futures=True)
