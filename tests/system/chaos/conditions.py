"""What a forked process is told of its surroundings: another clock, a lease of another length."""

from __future__ import annotations

import time
from collections.abc import Callable

import everlens.bus.stream

_DAY_S = 86_400.0


def _short_lease() -> None:
    everlens.bus.stream.LEASE_MS = 700


def _clock(offset_s: float) -> Callable[[], None]:
    def patch() -> None:
        clock, clock_ns = time.time, time.time_ns
        time.time = lambda: clock() + offset_s
        time.time_ns = lambda: clock_ns() + int(offset_s * 1e9)

    return patch


CONDITIONS: dict[str, Callable[[], None]] = {
    "short-lease": _short_lease,
    "tomorrow": _clock(_DAY_S),
    "yesterday": _clock(-_DAY_S),
}
