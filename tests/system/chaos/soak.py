"""Soak: a slow disk, rewrites of the append-only file and too little memory, all at once."""

from __future__ import annotations

import contextlib
import time

import redis

from tests.system.chaos import truth
from tests.system.chaos.campaign import case
from tests.system.chaos.disk import preload
from tests.system.chaos.ground import Ground, LogServer, must, until

_REWRITE_EVERY_S = 3.0
_SQUEEZE_EVERY_S = 5.0


def soak(ground: Ground, seconds: float) -> None:
    """Teach for so long while the server suffers; then all that was acknowledged is learnt."""
    slow = preload(ground.directory / "disk", sync_ms="15")
    ground.server = LogServer(ground.directory / "redis", before=slow)
    ground.settings["adapter_every_rounds"] = "10"
    ground.start_all()
    clients = ground.start_clients(3, 2, pause_s=0.1)
    end = time.monotonic() + seconds
    rewrite_at = squeeze_at = time.monotonic() + 0.5
    while time.monotonic() < end:
        ground.wait(0.2)
        if time.monotonic() > rewrite_at:
            rewrite_at += _REWRITE_EVERY_S
            rewrite(ground)
        if time.monotonic() > squeeze_at:
            squeeze_at += _SQUEEZE_EVERY_S
            squeeze(ground)
        if ground.rng.random() < 0.1:
            ground.kill_server()
    ground.end_clients(clients)
    ground.tally.add("slow_syncs", len(ground.ledger.acked))
    ground.verify()
    must(ground.ledger.success >= 0.999, f"{ground.ledger.asked}: {ground.ledger.wrong}")
    until(ground.serves_head, "the service to serve the head", 20)


def rewrite(ground: Ground) -> None:
    """Let the server rewrite its file; the checker keeps what it would delete."""
    truth.keep_increments(ground.server.directory)
    with contextlib.suppress(redis.RedisError):
        ground.client.bgrewriteaof()
        ground.tally.add("rewrites")


def squeeze(ground: Ground) -> None:
    """Refuse samples for their memory, for a moment."""
    with contextlib.suppress(redis.RedisError):
        ground.client.config_set("maxmemory", "1mb")
        time.sleep(0.3)
        ground.client.config_set("maxmemory", "256mb")
        ground.tally.add("memory_refusals")


@case(when="fast", needs=["rewrites", "slow_syncs", "memory_refusals"])
def soak_briefly(ground: Ground) -> None:
    """Six seconds with a slow disk, rewrites, memory limits and kills of the server."""
    soak(ground, 6.0)


@case(when="full", needs=["rewrites", "slow_syncs", "memory_refusals", "server_kills"])
def soak_for_a_minute(ground: Ground) -> None:
    """A minute with a slow disk, rewrites, memory limits and kills of the server."""
    soak(ground, 60.0)
