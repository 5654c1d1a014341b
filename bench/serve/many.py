"""Latency of a query by the number of learnt classes, all of them candidates."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from bench.measure import interleaved, ratio_of, spread_of
from bench.serve import bare
from bench.serve.findings import Findings
from bench.serve.stage import Stage, milliseconds
from everlens.model.snapshot import Snapshot
from service.batch_sizes import SMALL
from service.batcher import Batcher, Query
from service.metrics import Metrics
from service.names import NameVectors
from service.serving import Serving

COUNTS = (10, 1_000, 10_000, 100_000)
MUST = {10_000: 1.10, 100_000: 2.0}
_TOP = 5


def measure(stage: Stage) -> Findings:
    """Measure the service's own batcher over versions of each size, one query after the other."""
    found = Findings()
    snapshots = {count: stage.snapshot(classes=count) for count in COUNTS}
    pictures = [bare.decoded(body, stage.backbone.pixels) for body in stage.bodies[:8]]
    queries = [Query(picture, None, _TOP) for picture in pictures]
    seconds = stage.options.seconds / 4

    def ask(snapshot: Snapshot) -> float:
        return asyncio.run(_median_s(snapshot, queries, seconds))

    p50_s = interleaved(
        {str(count): partial(ask, snapshots[count]) for count in COUNTS}, stage.options.rounds + 1
    )
    least = p50_s[str(COUNTS[0])]
    found.add(f"p50 with {COUNTS[0]} classes, in process", milliseconds(spread_of(least)))
    for count in COUNTS[1:]:
        ratio, must = ratio_of(p50_s[str(count)], least), MUST.get(count)
        found.add(
            f"p50 with {count:,} classes over that",
            ratio,
            f"<= {must}" if must else "",
            ok=ratio.median <= must if must else None,
            **{f"latency_ratio_{count}_classes": ratio.median},
        )
    found.keep(p50_s=p50_s)
    return found


async def _median_s(snapshot: Snapshot, queries: list[Query], seconds: float) -> float:
    """Return the median time from a query to its answer."""
    batcher = Batcher(
        Serving(snapshot),
        NameVectors(snapshot.backbone),
        Metrics(),
        batch_max=SMALL,
        queued_max=SMALL,
    )
    await batcher.ask(queries[:1])
    taken: list[float] = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(taken) < 3:
        query = queries[len(taken) % len(queries)]
        taken.append(await _timed(batcher.ask([query])))
    await batcher.stop()
    return statistics.median(taken)


async def _timed(work: Coroutine[Any, Any, Any]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started
