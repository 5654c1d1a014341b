"""
The predictions of late, with the pictures they were made of, for whoever corrects them. ①⑨

Bounded by bytes, the oldest out first, in the memory of this process alone: another replica knows
others, and a restart forgets them. Keeping one costs a few microseconds, since everything is there
already; order and repeats are looked at when somebody asks.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

LINES_KEPT = 5

# What a prediction takes beside its picture and the names in it: objects, numbers and its place.
# A test holds the sum against what the interpreter allocates.
_OBJECTS_BYTES = 2048


@dataclass(slots=True, eq=False)
class Kept:
    """One answer that was given: the client's picture, the first lines, and whose it is."""

    id: str
    at: float  # seconds since 1970
    tenant: str  # the id of the key that asked; empty without keys
    image: bytes  # as the client sent it
    lines: list[dict[str, Any]]  # the best first
    known: float | None
    version: int
    learned_through: int
    feedback: str | None = None  # the id of the sample that came of it

    @property
    def margin(self) -> float | None:
        """How far the first line's score is above the second's; None where only one was asked."""
        if len(self.lines) < 2:
            return None
        margin: float = self.lines[0]["score"] - self.lines[1]["score"]
        return margin


class Predictions:
    """
    Remembers answers by their ids. Used from the event loop alone.

    Args:
        bytes_max: of all that is kept; 0 keeps nothing.
        clock: seconds since 1970.
    """

    def __init__(self, bytes_max: int, clock: Callable[[], float] = time.time) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._clock = clock
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, tenant: str, image: bytes, answer: Mapping[str, Any]) -> None:
        """
        Remember an answer; what is larger than the whole budget is not kept.

        Args:
            tenant: whose it is.
            image: the picture as the client sent it, taken by reference.
            answer: as it goes to the client; nobody may change it afterwards.
        """
        kept = Kept(
            answer["prediction_id"],
            self._clock(),
            tenant,
            image,
            answer["predictions"][:LINES_KEPT],
            answer["known"],
            answer["version"],
            answer["learned_through"],
        )
        size = _bytes_of(kept)
        if size > self.bytes_max:
            return
        self._kept[kept.id] = kept
        self.bytes += size
        while self.bytes > self.bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= _bytes_of(oldest)

    def find(self, prediction_id: str) -> Kept | None:
        """Return a prediction that is still kept, or None."""
        return self._kept.get(prediction_id)

    def of(self, tenant: str | None) -> list[Kept]:
        """Return the predictions of one tenant, or of all (None), the oldest first."""
        return [kept for kept in self._kept.values() if tenant in {None, kept.tenant}]


def uncertain(predictions: Sequence[Kept], count: int) -> list[Kept]:
    """
    Return what is best labelled next: the predictions with the smallest margins.

    Each picture stands for itself once, with its newest answer, and not at all when one of its
    predictions has feedback. Where only one line was answered nothing says how sure it was.

    Args:
        predictions: the oldest first.
        count: how many at most.
    """
    # By the bytes themselves, whose hash Python keeps: exact, and nothing to compute twice.
    newest = {kept.image: kept for kept in predictions}
    for kept in predictions:
        if kept.feedback is not None:
            newest.pop(kept.image, None)
    doubtful = [(kept.margin, kept) for kept in newest.values() if kept.margin is not None]
    return [kept for _, kept in nsmallest(count, doubtful, key=lambda pair: pair[0])]


def _bytes_of(kept: Kept) -> int:
    names = sum(sys.getsizeof(line["label"]) for line in kept.lines)
    return sys.getsizeof(kept.image) + names + _OBJECTS_BYTES
