"""
What a batch's commits and publications cost, beside its learning.

The worker's own loop over a real server with its durable settings: its transactions, and what makes a version and sends it to the log,
are timed from outside, by wrapping them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import worker.evidence_clock
from bench.learn.feed import CLASSES, Feed
from bench.learn.rows import Findings
from bench.measure import spread_of
from bench.running import log_server, scratch
from everlens.bus.admission import Admission, AdmissionLimits, Admittable
from everlens.bus.connect import connect, connect_async
from everlens.bus.keys import Keys
from everlens.bus.stream import Stream
from everlens.bus.witness import Witness
from everlens.model.backbone import Backbone
from everlens.pixels import encode_pixels
from everlens.records import Sample
from everlens.settings import Settings
from everlens.wire import encode_sample
from worker.__main__ import learner_config, pace
from worker.generations import Generations
from worker.learn.tuning import WARM_UP_STEPS
from worker.loop import Loop

SHARE = 0.05
_LIMITS = AdmissionLimits(samples_max=10_000, bytes_max=1 << 30, classes_max=1_000)
_SENT = ("missing", "store", "publish", "collect", "check_again", "head")


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent inside wrapped methods, whoever calls them."""

    spent: dict[str, float] = field(default_factory=dict)

    def around(self, inner: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return a function with every call timed; a context manager until its end."""

        def outer(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            made = inner(*args, **kwargs)
            if isinstance(made, contextlib.AbstractContextManager):
                return self._until_end(made, name)
            self._add(name, started)
            return made

        return outer

    @contextlib.contextmanager
    def _until_end(
        self, manager: contextlib.AbstractContextManager[Any], name: str
    ) -> Iterator[Any]:
        started = time.perf_counter()
        try:
            with manager as value:
                yield value
        finally:
            self._add(name, started)

    def _add(self, name: str, started: float) -> None:
        self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - started


def measure(backbone: Backbone, batches: int) -> Findings:
    """Return the rows of one model."""
    found = Findings()
    settings = Settings()
    with scratch() as folder, log_server(folder) as server:
        feed = Feed(backbone, settings)
        keys = Keys("commits")
        client = connect(server.url)
        Stream(client, keys).create()
        admit = partial(_admit, server.url, keys, folder, feed)
        generations = Generations(folder / "state" / "learner.db")
        loop = Loop(
            backbone,
            learner_config(settings, backbone),
            pace(settings),
            stream=Stream(client, keys),
            state=generations.open(),
            generations=generations,
            numerics="bench",
        )
        loop.learner.tuner.steps_drawn = WARM_UP_STEPS  # the steps of later batches
        try:
            # Names are encoded in the first batch.
            loop.run(_learnt(loop, admit("first", 1)))
            learnt, admitted = loop.progress.cursor, admit("later", batches)
            clock = Stopwatch()
            with _timing(loop, clock):
                started = time.perf_counter()
                loop.run(_learnt(loop, admitted))
                whole_s = time.perf_counter() - started
            timed_batches = (admitted - learnt) / settings.batch_size
        finally:
            loop.close()
            client.close()
    found.raw = {"seconds": {**clock.spent, "whole": whole_s}, "batches": timed_batches}
    label = "commit and publication of evidence, share of a batch's time"
    share = sum(clock.spent.values()) / whole_s
    found.at_most("commit_share", label, spread_of([share]), SHARE)
    for name in ("commit", "publish"):
        milliseconds = 1000 * clock.spent.get(name, 0.0) / timed_batches
        found.note(f"{name}_ms", f"{name}, ms a batch", spread_of([milliseconds]))
    return found


@contextlib.contextmanager
def _timing(loop: Loop, clock: Stopwatch) -> Iterator[None]:
    """Time a loop's transactions and all that makes and sends a version, for as long as this lasts."""
    watched: list[tuple[Any, str, str]] = [(loop.state, "transaction", "commit")]
    watched += [(loop.outbox.publisher, method, "publish") for method in _SENT]
    watched += [(loop.stream, method, "publish") for method in ("trim", "report")]
    watched += [
        (worker.evidence_clock, made, "publish") for made in ("evidence_parts", "next_manifest")
    ]
    with contextlib.ExitStack() as stack:
        for owner, method, name in watched:
            timed = clock.around(getattr(owner, method), name)
            stack.enter_context(patch.object(owner, method, timed))
        yield


def _known(loop: Loop, cursor: int) -> Callable[[], bool]:
    """Return a stop condition: everything up to an entry is learnt by evidence."""
    return lambda: hasattr(loop, "progress") and loop.progress.cursor >= cursor


def _learnt(loop: Loop, cursor: int) -> Callable[[], bool]:
    """Return a stop condition: everything up to an entry is learnt, tuned and published."""
    known = _known(loop, cursor)
    return lambda: known() and loop.unpublished is None and not loop.rounds.owed


def _admit(url: str, keys: Keys, folder: Path, feed: Feed, name: str, batches: int) -> int:
    """Append whole batches of random pictures through the real admission; return the last entry."""
    samples = [
        Sample(f"{name} {k}", f"class {k % CLASSES}", encode_pixels(pixels))
        for k, pixels in enumerate(feed.pictures(batches * feed.settings.batch_size))
    ]
    wanted = [
        Admittable(s.id, hashlib.sha256(s.image).hexdigest(), encode_sample(s)) for s in samples
    ]

    async def admit() -> int:
        connection = connect_async(url)
        try:
            admission = Admission(connection, keys, _LIMITS, Witness(folder / "witness"))
            return max(receipt.seq for receipt in await admission.admit(wanted))
        finally:
            await connection.aclose()

    return asyncio.run(admit())
