"""
The lease in long work: renewed between its pieces, so that nobody takes the log over meanwhile. ④

Not by a thread, which would hold on for a learner that hangs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from everlens.bus.stream import LEASE_MS
from everlens.errors import LogUnavailable
from worker.outage import Outage
from worker.outbox import Outbox

Piece = TypeVar("Piece")

_RENEWAL_S = LEASE_MS / 1000 / 6  # between two renewals


@dataclass(frozen=True, slots=True)
class Lease:
    """Held by whoever works through pieces, in whichever thread; one at a time."""

    outbox: Outbox  # knows the log, and whose lease it is
    outage: Outage

    def through(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield pieces, however many, and renew the lease while they are worked through."""
        progress, renewed = self.outbox.progress, time.monotonic()
        for piece in pieces:
            if time.monotonic() - renewed > _RENEWAL_S:
                renewed = time.monotonic()
                try:
                    self.outbox.stream.hold(progress.epoch, progress.holder)
                except LogUnavailable as error:  # half of them are done: there is no way back
                    self.outage.noticed(error)
            yield piece
