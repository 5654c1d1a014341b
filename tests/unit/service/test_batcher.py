"""Queries that come together share a forward pass, and each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from everlens.model.backbone import Backbone
from everlens.model.snapshot import Snapshot, base_snapshot
from service.batcher import Batcher, Query
from service.metrics import Metrics
from service.names import NameVectors
from service.passes import Passes
from service.problems import Problem
from service.serving import Serving
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio

LABELS = ("heron", "egret", "spoonbill")


@dataclass
class Watched:
    """A batcher whose forward passes are written down, and can be held up."""

    batcher: Batcher
    serving: Serving
    sizes: list[int]
    versions: list[int]
    gate: threading.Event
    held: threading.Event

    async def ask(self, *pictures: np.ndarray, labels=LABELS, top: int = 3):
        return await self.batcher.ask([Query(p, labels, top) for p in pictures])

    async def hold(self) -> asyncio.Task[Any]:
        """Return a query whose forward pass has begun, and waits for the gate to be opened."""
        self.gate.clear()
        first = asyncio.create_task(self.ask(*pictures(1)))
        await until(self.held.is_set)
        return first

    async def queued(self, count: int) -> None:
        """Return when so many queries are under way."""
        await until(lambda: self.batcher._queued == count)


@pytest.fixture
def base(tiny_clip: Backbone) -> Snapshot:
    return base_snapshot(tiny_clip, tiny_clip.top_blocks)


@pytest.fixture
def watch(base: Snapshot, monkeypatch):
    @asynccontextmanager
    async def run(batch_max: int = 8, queued_max: int = 1000) -> AsyncIterator[Watched]:
        serving = Serving(base)
        batcher = Batcher(
            serving,
            NameVectors(base.backbone),
            Metrics(),
            batch_max=batch_max,
            queued_max=queued_max,
            threads=2,
        )
        gate = threading.Event()
        gate.set()
        watched = Watched(batcher, serving, [], [], gate, threading.Event())
        see = Passes.see

        def seeing(passes: Passes, snapshot: Snapshot, pixels: Sequence[np.ndarray]):
            watched.held.set()
            assert gate.wait(60)
            watched.held.clear()
            watched.sizes.append(len(pixels))
            watched.versions.append(snapshot.version)
            return see(passes, snapshot, pixels)

        monkeypatch.setattr(Passes, "see", seeing)
        yield watched
        gate.set()
        await batcher.stop()

    return run


def pictures(count: int, size: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def expected(base: Snapshot, picture: np.ndarray, labels=LABELS) -> dict[str, float]:
    """The answer of one picture alone."""
    text_KE = torch.stack([base.backbone.name_embedding(name) for name in labels])
    probability_K = base.answer(base.see([picture]), labels, text_KE).probability_BK[0]
    return dict(zip(labels, probability_K.tolist(), strict=True))


def found(answer) -> dict[str, float]:
    return {line.label: line.score for line in answer.ranked}


async def test_each_query_gets_its_own_answer(base, watch):
    """Many concurrent queries are answered as each would be alone, with fewer forward passes."""
    shown = pictures(60)
    async with watch() as watched:
        answers = await asyncio.gather(*(watched.ask(picture) for picture in shown))
    assert sum(watched.sizes) == 60
    assert len(watched.sizes) < 30
    assert max(watched.sizes) <= 8
    for picture, (answer,) in zip(shown, answers, strict=True):
        assert found(answer) == pytest.approx(expected(base, picture), abs=1e-5)


async def test_a_crowd_is_seen_in_larger_batches(watch):
    """Of 40 that wait 16 pass together, and 16 of the rest: of those who are left none is kept back."""
    async with watch(batch_max=32) as watched:
        for _ in range(4):
            watched.batcher.sizes.timed(8, 8.0)
        first = await watched.hold()
        rest = [asyncio.create_task(watched.ask(picture)) for picture in pictures(40)]
        await watched.queued(41)
        watched.gate.set()
        answers = await asyncio.gather(first, *rest)
    assert len(answers) == 41
    assert watched.sizes == [1, 16, 16, 8]


async def test_what_waits_becomes_one_batch(watch):
    """While a forward pass runs, the queries that come are gathered for the next."""
    async with watch() as watched:
        first = await watched.hold()
        rest = [asyncio.create_task(watched.ask(picture)) for picture in pictures(7)]
        await watched.queued(8)
        watched.gate.set()
        await asyncio.gather(first, *rest)
    assert watched.sizes == [1, 7]


async def test_a_lone_query_waits_for_nobody(watch):
    """Without other pictures in decode there is no linger: one after the other, one each."""
    async with watch() as watched:
        for picture in pictures(3):
            await watched.ask(picture)
    assert watched.sizes == [1, 1, 1]


async def test_a_batch_lingers_for_a_picture_in_decode(watch, monkeypatch):
    """While a picture is announced, the batch waits a moment for it, and no longer."""
    one, other = pictures(2)
    async with watch() as watched:
        batcher = watched.batcher
        with monkeypatch.context() as patient:
            patient.setattr("service.batcher._LINGER_S_MAX", 60.0)
            batcher._forward_s = 1000.0
            with batcher.decoding():
                first = asyncio.create_task(watched.ask(one))
                await until(lambda: batcher._queued == 1 and batcher._queue.empty())
                second = asyncio.create_task(watched.ask(other))
            await asyncio.gather(first, second)
        assert watched.sizes == [2]
        batcher._forward_s = 1000.0
        with batcher.decoding():
            async with asyncio.timeout(20):  # a tenth of a forward pass is 100 s
                await watched.ask(one)
    assert watched.sizes == [2, 1]


async def test_mixed_names_in_one_batch(base, watch):
    """Queries with other names, orders and lengths share a forward pass and keep their own."""
    shown = pictures(3)
    wishes = [("heron", "egret"), ("egret", "heron", "stork"), ("stork",)]
    async with watch() as watched:
        queries = [Query(p, labels, 2) for p, labels in zip(shown, wishes, strict=True)]
        answers = await watched.batcher.ask(queries)
    assert watched.sizes == [3]
    for picture, labels, answer in zip(shown, wishes, answers, strict=True):
        whole = expected(base, picture, labels)
        best = sorted(whole, key=lambda name: -whole[name])[:2]
        assert [line.label for line in answer.ranked] == best
        assert found(answer) == pytest.approx({name: whole[name] for name in best}, abs=1e-5)


async def test_a_swap_takes_effect_between_two_batches(base, watch):
    """A batch that began with one snapshot ends with it; the next takes the new one."""
    from dataclasses import replace

    newer = replace(base, version=1, learned_through=7, digest="1")
    async with watch() as watched:
        first = await watched.hold()
        watched.serving.swap(newer)
        second = asyncio.create_task(watched.ask(*pictures(1)))
        await watched.queued(2)
        watched.gate.set()
        ((before,), (after,)) = await asyncio.gather(first, second)
    assert (before.version, before.learned_through) == (0, 0)
    assert (after.version, after.learned_through) == (1, 7)


async def test_versions_are_answered_side_by_side(base, watch):
    """One batch may ask several snapshots: one forward pass each, the order kept."""
    from dataclasses import replace

    newer = replace(base, version=1, learned_through=7, digest="1")
    async with watch() as watched:
        queries = [
            Query(picture, LABELS, 1, snapshot)
            for picture, snapshot in zip(pictures(4), [base, newer, base, newer], strict=True)
        ]
        answers = await watched.batcher.ask(queries)
    assert [answer.version for answer in answers] == [0, 1, 0, 1]
    assert sorted(zip(watched.versions, watched.sizes, strict=True)) == [(0, 2), (1, 2)]


async def test_new_names_do_not_keep_others_waiting(watch, monkeypatch):
    """A request with many unseen names is computed in slices, and others are answered between."""
    compute = NameVectors.compute

    def slowly(vectors: NameVectors, names: Sequence[str]):
        time.sleep(0.02 * len(names))
        return compute(vectors, names)

    monkeypatch.setattr(NameVectors, "compute", slowly)
    async with watch() as watched:
        await watched.ask(*pictures(1))
        many = tuple(f"name {k}" for k in range(50))
        answered = []

        async def asked(labels: tuple[str, ...]) -> None:
            (answer,) = await watched.ask(*pictures(1), labels=labels)
            assert {line.label for line in answer.ranked} <= set(labels)
            answered.append(labels)

        await asyncio.gather(asked(many), asked(LABELS))
    assert answered == [LABELS, many]


async def test_names_are_computed_once(watch, monkeypatch):
    """A name's vector is computed at its first mention and kept."""
    computed: list[str] = []
    compute = NameVectors.compute

    def noted(vectors: NameVectors, names: Sequence[str]):
        computed.extend(names)
        return compute(vectors, names)

    monkeypatch.setattr(NameVectors, "compute", noted)
    async with watch() as watched:
        for _ in range(3):
            await watched.ask(*pictures(1))
    assert sorted(computed) == sorted(LABELS)


async def test_forgotten_names_are_the_least_recent(tiny_clip: Backbone):
    """Beyond the limit the names not asked for longest are dropped."""
    names = NameVectors(tiny_clip, kept=2)
    names.compute(["a", "b"])
    assert names.known("a") is not None
    names.compute(["c"])
    assert names.known("b") is None
    assert names.known("a") is not None


async def test_a_failing_forward_fails_its_queries_alone(watch, monkeypatch):
    """What the model raises reaches those who asked, and the thread goes on."""
    async with watch() as watched:
        with pytest.raises(RuntimeError, match="size of tensor"):
            await watched.ask(np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8))
        assert len(await watched.ask(*pictures(1))) == 1


async def test_beyond_the_queue_is_busy(watch):
    """Queries beyond the limit are refused at once, and what waits is answered."""
    async with watch(queued_max=4) as watched:
        watched.gate.clear()
        waiting = [asyncio.create_task(watched.ask(picture)) for picture in pictures(4)]
        await watched.queued(4)
        with pytest.raises(Problem) as refused:
            await watched.ask(*pictures(1))
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
        watched.gate.set()
        assert len(await asyncio.gather(*waiting)) == 4
        await watched.ask(*pictures(1))
