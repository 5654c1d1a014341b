"""
How many pictures pass together where many wait: as many as are seen fastest. ⑨

Weights are read once a batch: a vision transformer sees a picture of 32 in .87 of the time that one
of eight takes. Of a convolutional tower the states no longer fit the cache, and it takes 1.13. So
every size is timed when it passes, and the best one of those that can be filled is taken.
"""

from __future__ import annotations

import math
from collections import Counter

SMALL = 8  # pictures that pass together, if so many wait, whatever they take

# The first pass of a size chooses kernels and takes memory. Of the next ones the least is
# remembered: a single one may have met anything, and would be believed for thousands of pictures.
_UNTIMED, _TRIED = 1, 3
_NEWEST = 0.25  # weight of the last pass in what is remembered of a size
# What is remembered of a size that does not pass shrinks by this share with as many pictures, so
# that it is tried again now and then: all sizes together for a hundredth of the time.
_FORGOTTEN = 0.002


class BatchSizes:
    """
    Remembers what a picture takes in batches of each size.

    Args:
        most: pictures in one batch.
    """

    def __init__(self, most: int) -> None:
        self.small = min(SMALL, most)
        self._sizes = doubling(self.small, most)
        self._passes: Counter[int] = Counter()
        self._picture_s: dict[int, float] = {}

    def choose(self, waiting: int) -> int:
        """Return how many of so many pictures pass together; sizes that were not tried go first."""
        filled = [size for size in self._sizes if size <= waiting]
        return min(filled, key=self._remembered_s, default=waiting)

    def _remembered_s(self, size: int) -> float:
        tried = self._passes[size] >= _UNTIMED + _TRIED
        return self._picture_s[size] if tried else 0.0

    def timed(self, pictures: int, seconds: float) -> None:
        """Remember what a batch took."""
        if pictures not in self._sizes:
            return
        self._passes[pictures] += 1
        if self._passes[pictures] <= _UNTIMED:
            return
        newest_s = seconds / pictures
        before_s = self._picture_s.pop(pictures, newest_s)
        for size in self._picture_s:
            share = _FORGOTTEN / (len(self._sizes) - 1) * pictures / size
            self._picture_s[size] *= max(0.0, 1.0 - share)
        if self._passes[pictures] <= _UNTIMED + _TRIED:
            self._picture_s[pictures] = min(before_s, newest_s)
        else:
            self._picture_s[pictures] = before_s + _NEWEST * (newest_s - before_s)


def doubling(least: int, most: int) -> list[int]:
    """Return the least, twice that, and so on below the most, and the most."""
    return [*(least << k for k in range(math.ceil(math.log2(most / least)))), most]
