"""Since when the oldest entry of the log has waited to be learnt. ①"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class OldestWaiting:
    """
    How long the oldest entry has waited, as far as this process has looked.

    Entries carry no time. The one after `done` came at the latest when somebody first saw the log
    reach it, so the answer is right to within the time between two looks, and too small by what
    was waiting before the first.
    """

    _LOOKS_MAX = 10_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: deque[tuple[int, float]] = deque(maxlen=self._LOOKS_MAX)

    def seconds(self, seq: int, done: int) -> float:
        """Return it for a log that ends at `seq` and is learnt up to `done`."""
        looks, now = self._looks, self._clock()
        if looks and seq < looks[-1][0]:
            looks.clear()  # another log
        if not looks or seq > looks[-1][0]:
            looks.append((seq, now))
        while looks and looks[0][0] <= done:
            looks.popleft()
        return now - looks[0][1] if looks else 0.0
