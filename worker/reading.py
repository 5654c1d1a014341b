"""
Reading the log: the next batch, and a border where a batch has waited long enough for one. ④

Only a border ends a batch, and it stands in the log: the clock decides when one is appended, never
what it means.
"""

from __future__ import annotations

import time

from everlens.bus.stream import Stream
from everlens.model.backbone import Backbone
from everlens.records import EntryKind
from worker.batch import FORGETTINGS_MAX, Batch, cut, parse
from worker.commit import Progress

_IDLE_MS = 500  # between two looks at the log while nothing comes
_TUNING_MS = 50  # likewise, while rounds of tuning may end


class Reading:
    """
    The reader of one log.

    Args:
        stream: the log.
        backbone: whose pictures and names its entries are.
        batch_size: pictures of a whole batch.
        linger_s: how long an entry waits for others.
    """

    def __init__(
        self, stream: Stream, backbone: Backbone, *, batch_size: int, linger_s: float
    ) -> None:
        self.stream = stream
        self.backbone = backbone
        self.batch_size = batch_size
        self.linger_s = linger_s
        self._waiting_since: float | None = None  # an entry is there, its batch has no border
        self._last_sample_at = time.monotonic()

    def next_batch(
        self, progress: Progress, *, tuning: bool, adapter_after_s: float | None
    ) -> Batch | None:
        """
        Return the next batch, or None after a wait in which its border did not come.

        Args:
            progress: where the learner is.
            tuning: whether rounds are being taken.
            adapter_after_s: when nothing came for so long, a border asks for the adapter; None
                while there is no other one to be published.
        """
        entries = self.stream.read(progress.cursor, self.batch_size)
        whole = cut(entries, self.batch_size)
        if whole is None and len(entries) == self.batch_size:  # of forgettings a batch takes more
            entries = self.stream.read(progress.cursor, FORGETTINGS_MAX)
            whole = cut(entries, self.batch_size)
        now = time.monotonic()
        if whole is not None:
            self._waiting_since = None
            self._last_sample_at = now
            return parse(whole, size=self.backbone.pixels.size, name_fits=self.backbone.name_fits)
        if not entries:
            self._waiting_since = None
            quiet_s = now - self._last_sample_at
            if tuning:
                self.stream.wait(progress.cursor, _TUNING_MS)
            elif progress.waiting:
                self.stream.append_control(EntryKind.TUNE, progress.cursor)
            elif adapter_after_s is not None and quiet_s > adapter_after_s:
                self.stream.append_control(EntryKind.ADAPTER, progress.cursor)
            else:
                self.stream.wait(progress.cursor, _IDLE_MS)
            return None
        self._waiting_since = self._waiting_since or now
        left_s = self._waiting_since + self.linger_s - now
        last_seq = entries[-1].seq
        if left_s > 0:
            self.stream.wait(last_seq, int(left_s * 1000) + 1)
        else:
            # What comes while a round is taken waits for the next one, which sees all of it.
            kind = EntryKind.CUT if tuning else EntryKind.TUNE
            self.stream.append_control(kind, last_seq)
        return None
