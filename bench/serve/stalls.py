"""
Ten thousand swaps: what a query that meets a swap waits, early and late, and the memory.

In one process, with the service's own hot swap, probe, batcher and snapshots. Only the log is left
out; it has a row of its own. The model is the smallest there is, one block with an adapter: all that
a swap does is done, and ten thousand times what large weights take to multiply would say no more of
whether it grows.

A neighbour on the machine moves p99 of a tenth by half and more. So what grows is told from all of
the run, by the median slope through the p99 of each fiftieth (Theil and Sen) with its interval, and
from the processor's seconds, which a wait for the core does not enter.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import theilslopes

from bench.load import percentile
from bench.measure import Spread
from bench.running import memory_bytes, scratch
from bench.serve.findings import Findings
from bench.serve.stage import Stage
from bench.tiny_clip import write_tiny_clip
from bench.versions import Versions
from everlens.bus.connect import connect_async
from everlens.bus.keys import Keys
from everlens.bus.versions import Follower
from everlens.model.backbone import load_backbone
from everlens.model.snapshot import base_snapshot
from service.batcher import Batcher, Query
from service.cache import VersionCache
from service.hotswap import HotSwap
from service.metrics import Metrics
from service.names import NameVectors
from service.probe import probe_picture
from service.serving import Serving

SWAPS = 10_000
FLAT, GROWTH_BYTES = 1.25, 16 * 2**20
_BLOCKS = 1
_TUNED_EVERY = 4  # a learner publishes its adapter less often than its evidence
# Versions that take turns, made before: to encode one takes the learner's half as long as the swap.
_CYCLE = 200
_MET_EVERY = 3  # swaps, of which a query meets one: the others take half as long
_WINDOWS = 50


class Stall(NamedTuple):
    """What a query that met a swap took: on the clock, and of the processor in all threads."""

    wall_s: float
    cpu_s: float


def measure(_: Stage, swaps: int = SWAPS) -> Findings:
    """Return how the stall grows from the first swap to the last, and the memory."""
    found = Findings()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small is slower on two
    try:
        with scratch() as folder:
            stalls, memory = asyncio.run(_swapped(folder, swaps))
    finally:
        torch.set_num_threads(threads)
    wall_s, cpu_s = ([stall[k] for stall in stalls] for k in range(2))
    wall, cpu = growth_of(wall_s), growth_of(cpu_s)
    tenth = len(wall_s) // 10
    early, late = (1e3 * p99(part) for part in (wall_s[:tenth], wall_s[-tenth:]))
    memory_growth = memory[-1] - memory[0]
    found.add(
        f"{swaps} swaps of a small model: p99 of the {len(stalls)} queries that meet one, growth in "
        "processor time",
        f"{cpu} of {1e3 * p99(cpu_s):.3g} ms",
        f"<= {FLAT} x, 95 %",
        ok=cpu.high <= FLAT,
        swap_stall_growth=cpu.median,
        swap_stall_growth_at_most=cpu.high,
    )
    found.add(
        "likewise on the clock, its neighbours included; first tenth, last tenth",
        f"{wall}; {early:.3g} ms, {late:.3g} ms",
        swap_stall_growth_wall=wall.median,
    )
    found.add(
        "memory after the last swap over that after the first tenth",
        f"{memory_growth / 2**20:+.3g} MB of {memory[0] / 2**20:.0f}",
        f"<= {GROWTH_BYTES / 2**20:.0f} MB",
        ok=memory_growth <= GROWTH_BYTES,
        swap_memory_growth_mb=memory_growth / 2**20,
    )
    found.keep(memory_bytes=memory, stalls_s=wall_s, stalls_cpu_s=cpu_s)
    return found


def p99(seconds: Sequence[float]) -> float:
    """Return what one in a hundred exceeds."""
    return percentile(sorted(seconds), 0.99)


def growth_of(seconds: Sequence[float]) -> Spread:
    """
    Return last over first of the p99 of each fiftieth, with the ends of its 95 % interval.

    Source: Sen, Journal of the American Statistical Association 63 (1968), of logarithms.
    """
    size = max(1, len(seconds) // _WINDOWS)
    log_W = np.log([p99(seconds[k : k + size]) for k in range(0, len(seconds), size)])
    slope, _, low, high = theilslopes(log_W, alpha=0.95)
    return Spread(*(float(np.exp(s * (len(log_W) - 1))) for s in (slope, low, high)))


async def _swapped(folder: Path, swaps: int) -> tuple[list[Stall], list[int]]:
    """Return what a query took in each swap, and the memory after each tenth of them."""
    backbone = load_backbone(
        str(write_tiny_clip(folder / "tiny", _BLOCKS)), "random", device=torch.device("cpu")
    )
    metrics, serving = Metrics(), Serving(base_snapshot(backbone, _BLOCKS))
    batcher = Batcher(serving, NameVectors(backbone), metrics, batch_max=8, queued_max=64)
    client = connect_async("redis://nobody-is-asked")
    builder = ThreadPoolExecutor(1)
    swaps_in = HotSwap(
        Follower(client, Keys("bench")),
        serving,
        metrics,
        builder,
        asyncio.Event(),
        VersionCache(folder / "kept"),
    )
    versions = Versions(backbone, 10, top_blocks=_BLOCKS)
    first, picture = versions.first(), probe_picture(backbone)
    turns = [
        versions.tuned() if number % _TUNED_EVERY == 0 else versions.learnt(number % 10)
        for number in range(_CYCLE)
    ]
    parts = dict(first.contents)
    for version in turns:
        parts |= version.contents
    await swaps_in._take(first.manifest, first.contents)
    stalls, memory = [], []
    gc.collect()
    gc.freeze()  # as the service does
    for number in range(swaps):
        swap = asyncio.create_task(swaps_in._take(turns[number % _CYCLE].manifest, parts))
        if number % _MET_EVERY == 0:
            await asyncio.sleep(0)  # it is under way when the query comes
            started, used = time.perf_counter(), time.process_time()
            await batcher.ask([Query(picture, None, 1)])
            stalls.append(Stall(time.perf_counter() - started, time.process_time() - used))
        await swap
        if (number + 1) % (swaps // 10) == 0:
            memory.append(memory_bytes(os.getpid()))
    await batcher.stop()
    builder.shutdown()
    await client.aclose()
    gc.unfreeze()
    return stalls, memory
