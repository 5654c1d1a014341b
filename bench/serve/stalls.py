"""
Ten thousand swaps: what a query that meets a swap waits, early and late, and the memory.

In one process, with the service's own hot swap, probe, batcher and snapshots over a small model: a
swap's cost in the large models is that of their probe. Only the log is left out, so that all fit
into half a minute; it has a row of its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench.load import percentile
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
_TOP_BLOCKS = 2


def measure(_: Stage, swaps: int = SWAPS) -> Findings:
    """Compare the first tenth of the swaps with the last."""
    found = Findings()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small is slower on two
    try:
        with scratch() as folder:
            stalls_s, memory = asyncio.run(_swapped(folder, swaps))
    finally:
        torch.set_num_threads(threads)
    tenth = swaps // 10
    early, late = (percentile(sorted(s), 0.99) for s in (stalls_s[:tenth], stalls_s[-tenth:]))
    growth = memory[-1] - memory[0]
    found.add(
        f"{swaps} swaps of a small model: p99 of a query that meets one, first tenth, last tenth",
        f"{1e3 * early:.3g} ms, {1e3 * late:.3g} ms",
        f"<= {FLAT} x",
        ok=late <= FLAT * early,
        swap_stall_growth=late / early,
    )
    found.add(
        "memory after the last swap over that after the first tenth",
        f"{growth / 2**20:+.3g} MB of {memory[0] / 2**20:.0f}",
        f"<= {GROWTH_BYTES / 2**20:.0f} MB",
        ok=growth <= GROWTH_BYTES,
        swap_memory_growth_mb=growth / 2**20,
    )
    found.keep(memory_bytes=memory, stalls_s=stalls_s[:: max(1, swaps // 1000)])
    return found


async def _swapped(folder: Path, swaps: int) -> tuple[list[float], list[int]]:
    """Return what a query waited in each swap, and the memory after each tenth of them."""
    backbone = load_backbone(
        str(write_tiny_clip(folder / "tiny")), "random", device=torch.device("cpu")
    )
    metrics, serving = Metrics(), Serving(base_snapshot(backbone, _TOP_BLOCKS))
    batcher = Batcher(serving, NameVectors(backbone), metrics, batch_max=8, queued_max=64)
    client = connect_async("redis://nobody-is-asked")
    builder = ThreadPoolExecutor(1)
    swaps_in = HotSwap(
        Follower(client, Keys("bench")),
        serving,
        batcher,
        metrics,
        builder,
        asyncio.Event(),
        VersionCache(folder / "kept"),
    )
    versions = Versions(backbone, 10, top_blocks=_TOP_BLOCKS)
    first, picture = versions.first(), probe_picture(backbone)
    await swaps_in._take(first.manifest, first.contents)
    stalls_s, memory = [], []
    for number in range(swaps):
        version = versions.tuned() if number % 2 else versions.learnt(number % 10)
        swap = asyncio.create_task(swaps_in._take(version.manifest, version.contents))
        await asyncio.sleep(0)  # it is under way when the query comes
        started = time.perf_counter()
        await batcher.ask([Query(picture, None, 1)])
        stalls_s.append(time.perf_counter() - started)
        await swap
        if (number + 1) % (swaps // 10) == 0:
            memory.append(memory_bytes(os.getpid()))
    await batcher.stop()
    builder.shutdown()
    await client.aclose()
    return stalls_s, memory
