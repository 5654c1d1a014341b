"""
The picture of a query that waits is seen while it waits. ⑨

Whoever asks with `wait_for` waits until the learner has passed a sample through the towers. The
picture that is asked about needs the same pass, and what comes of it depends on picture and towers
alone: with the next version only the scores are new, unless it brings another adapter. So the pass is
made meanwhile, by a thread that stands back, and only where nobody else asks: many pictures are seen
faster together.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from everlens.model.snapshot import Snapshot, Views
from everlens.pixels import Pixels
from service.serving import Serving


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The views of one picture, and the version by whose towers it was seen."""

    views: Views
    by: Snapshot

    def holds_for(self, snapshot: Snapshot) -> bool:
        """Return whether a version has the very towers that saw the picture."""
        return (
            snapshot.trunk is self.by.trunk
            and snapshot.frozen_top is self.by.frozen_top
            and snapshot.tuned_top is self.by.tuned_top
        )


class Ahead:
    """
    Sees one picture at a time.

    Args:
        serving: has the version that sees.
        idle: whether the model thread has nothing to do.
        thread: where it is done; one, that stands back.
    """

    def __init__(self, serving: Serving, idle: Callable[[], bool], thread: Executor) -> None:
        self._serving = serving
        self._idle = idle
        self._thread = thread
        self._last: Future[Seen] | None = None

    def look(self, pixels: Pixels) -> Future[Seen] | None:
        """Begin to see a picture; None where somebody asks, or another one is being seen."""
        if not self._idle() or (self._last is not None and not self._last.done()):
            return None
        self._last = self._thread.submit(_see, self._serving.current, pixels)
        return self._last


def seen_by_now(looking: Future[Seen] | None) -> Seen | None:
    """Return what was seen, None where nothing was, or not yet: the model thread is faster."""
    if looking is None or not looking.done() or looking.cancelled() or looking.exception():
        return None
    return looking.result()


def _see(snapshot: Snapshot, pixels: Pixels) -> Seen:
    return Seen(snapshot.see([pixels]), snapshot)
