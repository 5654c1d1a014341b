"""Group commit: who is grouped with whom, and how long anybody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

import service.admission
from everlens.bus.admission import Admission, Admittable
from everlens.errors import IdConflict, LogUnavailable
from everlens.records import Receipt
from service.admission import GroupAdmission
from tests.unit.service.waiting import until


class StoppedLog:
    """A log that takes calls and does not answer until it is let."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.answering = asyncio.Event()

    async def admit(self, samples: Sequence[Admittable]) -> list[Receipt]:
        self.calls.append([sample.id for sample in samples])
        await self.answering.wait()
        return [Receipt(sample.id, seq, repeated=False) for seq, sample in enumerate(samples, 1)]


def sample(name: str) -> Admittable:
    return Admittable(name, "digest", b"payload")


@pytest.mark.anyio
async def test_nobody_waits_for_the_groups_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Behind a call that is not answered everybody is told in time that it is unknown; those who were
    not sent by then never are, and the next one is served as if nothing had been.
    """
    monkeypatch.setattr(service.admission, "ANSWER_S", 0.2)
    log = StoppedLog()
    group = GroupAdmission(cast("Admission", log))

    waiting = [asyncio.create_task(group.admit([sample("sent")]))]
    await until(lambda: log.calls)
    waiting += [asyncio.create_task(group.admit([sample(f"late-{k}")])) for k in range(3)]
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(outcome, LogUnavailable) for outcome in outcomes)
    log.answering.set()
    monkeypatch.setattr(service.admission, "ANSWER_S", 60)
    assert [Receipt("next", 1, repeated=False)] == await group.admit([sample("next")])
    assert [["sent"], ["next"]] == log.calls


class SlowConflict:
    """A log that refuses groups, and takes its time for each request alone."""

    def __init__(self) -> None:
        self.alone: list[str] = []

    async def admit(self, samples: Sequence[Admittable]) -> list[Receipt]:
        if len(samples) > 1:
            raise IdConflict("one of them has another picture")
        self.alone.append(samples[0].id)
        await asyncio.sleep(0.3)
        return [Receipt(samples[0].id, 1, repeated=False)]


@pytest.mark.anyio
async def test_nobody_is_sent_after_he_was_told_that_it_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind a refused group requests are sent one by one, while somebody still waits for them."""
    monkeypatch.setattr(service.admission, "ANSWER_S", 0.2)
    log = SlowConflict()
    group = GroupAdmission(cast("Admission", log))
    asked = [asyncio.create_task(group.admit([sample(f"{k}")])) for k in range(3)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(outcome, LogUnavailable) for outcome in outcomes)
    await asyncio.sleep(0.5)
    assert log.alone == ["0"]
