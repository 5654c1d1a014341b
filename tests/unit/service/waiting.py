"""Waiting in tests for what happens soon, however slow the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_PATIENCE_S = 60.0


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)
