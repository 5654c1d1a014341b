"""
Group commit: samples of requests that arrive together go to the log in one call. ②

While one call is away the next group gathers, so there is no timer, and one sample alone waits
for nobody. A refusal never spreads: a refused group is tried again request by request. Nobody waits
longer than `ANSWER_S`, however many groups are ahead of him.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from everlens.bus.admission import Admission, Admittable
from everlens.errors import LogUnavailable, Refused
from everlens.records import Receipt

GROUP_SAMPLES_MAX = 64
ANSWER_S = 2.0  # a slow disk takes half a second; who waits longer is told that it is unknown

_Waiting = tuple[list[Admittable], "asyncio.Future[list[Receipt]]"]


class GroupAdmission:
    """Admits each request's samples, all or none, many requests in one call."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._waiting: list[_Waiting] = []
        self._sender: asyncio.Task[None] | None = None

    async def admit(self, samples: Sequence[Admittable]) -> list[Receipt]:
        """Return the receipts of one request's samples; raises as `Admission.admit` does."""
        future: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(samples), future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        late = LogUnavailable(f"the log did not answer within {ANSWER_S:g} s")
        timer = asyncio.get_running_loop().call_later(ANSWER_S, _fail, future, late)
        try:
            return await future
        finally:
            timer.cancel()

    async def _send(self) -> None:
        while group := self._take():
            try:
                await self._admit_together(group)
            except Refused:
                for request in group:
                    if not request[1].done():  # the one before may have taken long
                        await self._admit_alone(request)

    def _take(self) -> list[_Waiting]:
        """Return the next group: no more samples than one call takes, but for a single request."""
        # Who has left, or was told that it is unknown, sends again if he still wants it.
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]
        group: list[_Waiting] = []
        size = 0
        while self._waiting:
            size += len(self._waiting[0][0])
            if group and size > GROUP_SAMPLES_MAX:
                break
            group.append(self._waiting.pop(0))
        return group

    async def _admit_together(self, group: list[_Waiting]) -> None:
        if len(group) == 1:
            await self._admit_alone(group[0])
            return
        try:
            receipts = await self.admission.admit([s for samples, _ in group for s in samples])
        except Refused:
            raise
        except Exception as error:  # also what the server itself says: nobody may wait for ever
            for _, future in group:
                _fail(future, error)
            return
        for samples, future in group:
            mine, receipts = receipts[: len(samples)], receipts[len(samples) :]
            if not future.done():
                future.set_result(mine)

    async def _admit_alone(self, request: _Waiting) -> None:
        samples, future = request
        try:
            receipts = await self.admission.admit(samples)
        except Exception as error:
            _fail(future, error)
            return
        if not future.done():
            future.set_result(receipts)


def _fail(future: asyncio.Future[list[Receipt]], error: Exception) -> None:
    # An instance for each: a traceback grows with every raise.
    if not future.done():
        future.set_exception(error)
