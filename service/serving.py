"""The snapshots that answer: one current, the last few by number, and the frozen base. ⑧"""

from __future__ import annotations

import asyncio

from everlens.model.snapshot import Snapshot

KEPT = 8


class Serving:
    """Holds the one reference that a hot swap exchanges."""

    def __init__(self, base: Snapshot) -> None:
        self.base = base
        self.current = base
        self._kept: dict[int, Snapshot] = {}
        self._swapped = asyncio.Event()
        self.waiting = 0
        self.stopped = False

    @property
    def swapped(self) -> asyncio.Event:
        """Set at the next swap, and never again."""
        return self._swapped

    def swap(self, snapshot: Snapshot) -> None:
        """Answer with `snapshot` from the next batch on."""
        self._kept.pop(snapshot.version, None)
        self._kept[snapshot.version] = snapshot
        for version in list(self._kept)[:-KEPT]:
            del self._kept[version]
        self.current = snapshot
        swapped, self._swapped = self._swapped, asyncio.Event()
        swapped.set()

    def find(self, version: int) -> Snapshot | None:
        """Return the snapshot of a version, 0 being the frozen base; None when it is not kept."""
        return self.base if version == 0 else self._kept.get(version)

    @property
    def versions(self) -> list[int]:
        """The versions that can be asked for, the oldest first."""
        return [0, *self._kept]

    async def wait_learned(self, seq: int, wait_s: float) -> bool:
        """
        Return True once the current snapshot has learnt entry `seq`.

        False after `wait_s`, and where it has not when the service stops.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                while self.current.learned_through < seq and not self.stopped:
                    await self._swapped.wait()
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
        return self.current.learned_through >= seq

    def stop(self) -> None:
        """Let nobody wait any more."""
        self.stopped = True
        self._swapped.set()
