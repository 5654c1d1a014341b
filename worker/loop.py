"""
The learner's loop, in the order in which it must happen. ④-⑦

    read → learn → commit → publish → trim, and beside it: tune → commit, then → publish.

A crash between any two repeats work and loses none: the commit owns the cursor, a publication and
a trim may be made twice, and a batch whose commit did not happen is learnt again to the same bits.
So is a round of tuning: drawn behind the publication of its batch, committed, taken beside the next.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from everlens import logs, tracing
from everlens.artifact import Manifest
from everlens.bus.durability import check_durable
from everlens.bus.stream import Stream
from everlens.errors import LogUnavailable
from everlens.model.backbone import Backbone
from everlens.model.snapshot import Snapshot
from worker.adapter_clock import AdapterClock
from worker.batch import Batch
from worker.belonging import epoch_of
from worker.commit import Progress, StateFile
from worker.evidence_clock import EvidenceClock
from worker.generations import Generations
from worker.learn.learner import LabelledPixels, Learner, LearnerConfig
from worker.lease import Lease
from worker.outage import Outage
from worker.outbox import Outbox
from worker.poison import ATTEMPTS, Attempts, sorted_out
from worker.reading import Reading
from worker.report import Report
from worker.restoring import restore
from worker.rounds import OWED_MAX, Rounds, stand_back_with

log = logging.getLogger("everlens.worker")

_AWAY_S = 0.2  # between two attempts while the log does not answer
_HELD_S = 0.2  # between two looks while somebody holds learning
_TUNING_S = 0.05  # likewise, while a round of tuning must end
_PATIENCE_S = 2.0  # of a few entries that wait for a round which stands back


@dataclass(frozen=True, slots=True)
class Pace:
    """When a batch is cut, tuned and published as an adapter; see `everlens.settings`."""

    batch_size: int
    linger_s: float
    adapter_every_rounds: int
    adapter_idle_s: float
    id_window: int
    copy_every_entries: int
    creates: bool = True  # a log, where there is none


class Loop:
    """One learner over one log and one state file, from `run` until it is told to stop."""

    def __init__(
        self,
        backbone: Backbone,
        config: LearnerConfig,
        pace: Pace,
        *,
        stream: Stream,
        state: StateFile,
        generations: Generations,
        numerics: str,
        threads: int = 1,
    ) -> None:
        self.backbone = backbone
        self.pace = pace
        self.stream = stream
        self.state = state
        self.generations = generations
        self.numerics = numerics
        self.learner = Learner(backbone, config)
        self.attempts = Attempts(state.path.with_suffix(".attempts"))
        self.outage = Outage()
        # For what may wait; the loop's own thread brings a label into the answers.
        self._patient = ThreadPoolExecutor(
            1, thread_name_prefix="patient", initializer=partial(stand_back_with, threads)
        )
        self.rounds = Rounds(
            self.learner, Attempts(state.path.with_suffix(".rounds-attempts")), threads
        )
        self.outbox = Outbox(self.learner, state, generations, stream, id_window=pace.id_window)
        self.report = Report(self.outbox, self.rounds, numerics)
        self.reading = Reading(stream, backbone, batch_size=pace.batch_size, linger_s=pace.linger_s)
        lease = Lease(self.outbox, self.outage)
        self.evidence_clock = EvidenceClock(
            self.outbox, self._patient, lease, self.report.counts, pace.batch_size
        )
        self.adapter_clock = AdapterClock(
            self.outbox,
            self.rounds,
            self.attempts,
            self._patient,
            lease,
            self.report.counts,
            pace.adapter_every_rounds,
        )
        self._saved: Progress | None = None  # as the state file had it
        self._restored = False
        self._stopping: Callable[[], bool] = lambda: False
        self._blocked_since: float | None = None  # a few entries, by rounds that are owed
        self._adapter_s = 0.0  # what the last publication of an adapter took
        self.begun = False  # whether this learner holds the log

    @property
    def progress(self) -> Progress:
        """Where the learner is, from the start on."""
        return self.outbox.progress

    @property
    def snapshot(self) -> Snapshot:
        """The version that is committed."""
        return self.outbox.snapshot

    @property
    def unpublished(self) -> tuple[Manifest, dict[str, bytes]] | None:
        """The version that is committed, while it is not the head, with its new parts by digest."""
        return self.outbox.unpublished

    @property
    def holder(self) -> str:
        """The name under which this state holds the lease; empty without a state."""
        return self._saved.holder if self._saved is not None else ""

    def run(self, stopping: Callable[[], bool]) -> None:
        """
        Learn until `stopping()` says so.

        Raises:
            StateError, OtherLog, Fenced, Diverged, ServerError: learning must stop; serving goes on.
        """
        self._stopping = stopping
        while not stopping():
            try:
                batch = self._turn()
            except LogUnavailable as error:
                self.outage.noticed(error)
                time.sleep(_AWAY_S)
                continue
            self.outage.over()
            if batch is None:
                continue
            place = {
                "batch": self.learner.batch + 1,
                "first_seq": batch.first_seq,
                "last_seq": batch.last_seq,
                "samples": len(batch.samples),
            }
            with tracing.linked("learn batch", batch.traces, place), logs.about(**place):
                self._learn(batch)

    def close(self) -> None:
        """Close the state, once a step that is being taken and a copy that is being made are done."""
        self.rounds.close()
        self._patient.shutdown()
        self.generations.close()
        self.state.close()

    def _turn(self) -> Batch | None:
        """Do what is due; return the next batch, or None where none is to be learnt yet."""
        if not self.begun and not self._begin():
            time.sleep(_AWAY_S)
            return None
        self._keep_up()
        self.adapter_clock.commit_taken()
        if self.stream.held:
            time.sleep(_HELD_S)
            return None
        if self.progress.adapter_due:
            self._publish_adapter()
            return None
        if self.rounds.owed >= OWED_MAX:
            self._wait_for_rounds(1)
            return None
        self._blocked_since = None
        self.rounds.ahead = 0
        return self._next_batch()

    def _begin(self) -> bool:
        """Hold the log that belongs to the state; return False while another learner does."""
        check_durable(self.stream.client)
        if not self._restored:
            self._saved = restore(self.state, self.learner)
            self._restored = True
        epoch = epoch_of(self.stream, self._saved, creates=self.pace.creates)
        if self._saved is None:
            self._saved = Progress(
                epoch, uuid.uuid4().hex, self.backbone.fingerprint, self.numerics
            )
            with self.state.transaction():
                self.state.save_progress(self.learner, self._saved)
        self.outbox.progress = self._saved
        if not self.stream.hold(epoch, self.holder):
            return False
        self.outbox.resume(self.numerics)
        self.stream.pause("", self.holder)
        self.adapter_clock.owe_again(self._settle)
        self.begun = True  # last: whatever failed before is done again from the start
        return True

    def _next_batch(self) -> Batch | None:
        # At least as long as the last publication took: somebody who labels now and then would
        # have to wait for one after each pause.
        idle_s = max(self.pace.adapter_idle_s, self._adapter_s)
        return self.reading.next_batch(
            self.progress,
            tuning=self.rounds.owed > 0,
            adapter_after_s=idle_s if self.adapter_clock.waits else None,
        )

    def _learn(self, batch: Batch) -> None:
        """Learn one batch; when told to stop before it could be, it is read again at the start."""
        started = time.monotonic()
        if self.attempts.begin(batch.last_seq) >= ATTEMPTS:
            # A child that is forked from the middle of a step could wait for ever.
            if not self._settle():
                return
            batch = self._sorted_out(batch)
        unlearns = batch.activation is not None or batch.forgettings
        if unlearns and not self._all_is_out():
            return
        if batch.activation is not None:
            self.evidence_clock.activate(batch, batch.activation)
        elif batch.forgettings:
            self.evidence_clock.forget(batch)
        else:
            self.evidence_clock.observe(batch)
        if batch.activation is None:
            self._publish_soon()
            self.adapter_clock.draw()
        self.attempts.done()
        if self.progress.cursor >= self.generations.newest + self.pace.copy_every_entries:
            self.generations.copy()
        seconds = time.monotonic() - started
        self.report.measure(batch, seconds)
        for letter in batch.dead:
            log.warning("entry %d is not learnt: %s", letter.seq, letter.reason)
        log.debug("version %d in %.3f s", self.progress.version, seconds)

    def _sorted_out(self, batch: Batch) -> Batch:
        """Return the batch without the samples that end the learner."""
        log.warning("the batch up to %d never ended; trying its samples aside", batch.last_seq)

        def learn(samples: Sequence[LabelledPixels]) -> None:
            self.generations.aside(partial(self.learner.observe, samples, self.snapshot))

        fit, dead = sorted_out(batch.samples, learn)
        return replace(batch, samples=fit, dead=[*batch.dead, *dead])

    def _publish_adapter(self) -> None:
        """
        Let the adapter clock publish, unless told to stop before.

        Raises:
            LogUnavailable: the version is committed, and may not be the head; no batch may come before.
        """
        if not self._all_is_out():
            return
        started = time.monotonic()
        self.adapter_clock.publish()
        try:
            self._keep_up()
        finally:
            self._adapter_s = time.monotonic() - started

    def _keep_up(self) -> None:
        """Renew the lease; publish and trim what is committed and not yet so."""
        # Each time, since an older log may be put under a learner that runs.
        self.stream.hold(self.progress.epoch, self.progress.holder, self.progress.cursor)
        self.generations.tend()
        if self.outbox.send() or self.report.is_due:
            self.report.send()

    def _publish_soon(self) -> None:
        """Publish now, so that an answer knows the sample at once; later where the log is away."""
        try:
            self._keep_up()
        except LogUnavailable as error:
            self.outage.noticed(error)

    def _all_is_out(self) -> bool:
        """Wait until no round is owed and the last version is the head; False when told to stop."""
        return self._settle() and self._publish_before_next()

    def _settle(self) -> bool:
        """Wait until no round is owed; return False when told to stop before."""
        while self.rounds.owed:
            if self._stopping():
                return False
            self._publish_soon()  # and renew the lease
            self._wait_for_rounds(self.rounds.owed)
        self._blocked_since = None
        return True

    def _wait_for_rounds(self, count: int) -> None:
        """
        Wait a moment for so many.

        Of few entries that wait behind them each is somebody's, of many none. Those of few go ahead
        of answers when they have waited for a while: where there is a core to spare, nobody has to.
        """
        few = 0 < self.stream.seq - self.progress.cursor <= self.pace.batch_size
        now = time.monotonic()
        self._blocked_since = (self._blocked_since or now) if few else None
        if self._blocked_since is not None and now > self._blocked_since + _PATIENCE_S:
            self.rounds.ahead = count
        self.adapter_clock.commit_taken(wait_s=_TUNING_S)

    def _publish_before_next(self) -> bool:
        """Wait until the last committed version is the head; return False when told to stop."""
        while self.unpublished is not None:
            if self._stopping():
                return False
            try:
                self._keep_up()
            except LogUnavailable as error:
                self.outage.noticed(error)
                time.sleep(_AWAY_S)
        return True
