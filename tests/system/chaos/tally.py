"""What did happen: a condition that never occurred was not tested."""

from __future__ import annotations

import threading
from collections import Counter


class Tally:
    """Counts of conditions; safe to use from many threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Count what happened."""
        with self._lock:
            self._counts[name] += count

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def all(self) -> dict[str, int]:
        """Return every count by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def include(self, other: Tally) -> None:
        """Add all counts of another one."""
        for name, count in other.all().items():
            self.add(name, count)
