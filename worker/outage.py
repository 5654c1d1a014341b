"""What is said while the log is away: at once, then ever more rarely, and when it is back. ④"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_SILENCE_S = 5.0  # after the first line; twice as long after each next
_SILENCE_S_MAX = 300.0

log = logging.getLogger("everlens.worker")


class Outage:
    """
    Tells people of failures that are tried again several times a second.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._silent_until = 0.0
        self._silence_s = _SILENCE_S

    def noticed(self, error: Exception) -> None:
        """Take note of one more failure."""
        now = self._clock()
        if self._since is None:
            self._since, self._silence_s = now, _SILENCE_S
            log.warning("%s; trying again", error)
        elif now < self._silent_until:
            return
        else:
            log.warning("%s; trying again for %.0f s already", error, now - self._since)
            self._silence_s = min(2 * self._silence_s, _SILENCE_S_MAX)
        self._silent_until = now + self._silence_s

    def over(self) -> None:
        """Take note that it answers."""
        if self._since is not None:
            log.warning("the log answers again after %.1f s", self._clock() - self._since)
            self._since = None
