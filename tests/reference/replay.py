"""
Class-balancing reservoir sampling after Chrysakis and Moens (ICML 2020), Algorithm 1, in slots.

A class is largest when none holds more, so several can be at once; it is full when it is or ever
was largest in a memory without room. One flat list for the memory; `below(n)` gives a uniform
number in [0, n). Of several largest classes the one of the lowest number makes room. Beyond the
paper: a full class that lost its last sample to others is let in again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class Memory:
    """At most `slots` samples of any number of classes."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.stored: list[tuple[int, int]] = []  # sample and class, in the order of arrival
        self.seen: Counter[int] = Counter()
        self.full: set[int] = set()

    def offer(self, sample: int, label: int, below: Callable[[int], int]) -> None:
        """Store the sample, in the place of another one or not at all."""
        self.seen[label] += 1
        if len(self.stored) < self.slots:
            self.stored.append((sample, label))
            return
        held = Counter(c for _, c in self.stored)
        largest = [c for c in sorted(held) if held[c] == max(held.values())]
        self.full.update(largest)
        if label not in self.full or not held[label]:
            self._replace(largest[0], (sample, label), below)
        elif below(self.seen[label]) < held[label]:
            self._replace(label, (sample, label), below)

    def _replace(self, label: int, by: tuple[int, int], below: Callable[[int], int]) -> None:
        own = [entry for entry in self.stored if entry[1] == label]
        self.stored.remove(own[below(len(own))])
        self.stored.append(by)
