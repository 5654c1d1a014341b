"""
The adapter clock: rounds of tuning are drawn, taken and committed, and now and then published. ⑤⑥

A round is drawn behind the publication of its batch and taken beside the next ones
(`worker.rounds`); a death in between repeats it to the same bits. What rounds come to is published
when enough of them were drawn, or when nothing came for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from everlens.artifact import Manifest
from worker.learn.adapter_head import exemplars_seen
from worker.learn.learner import Learner
from worker.learn.tuning import Round
from worker.lease import Lease
from worker.outbox import Outbox
from worker.poison import ATTEMPTS, Attempts, allowed_s, failure_aside
from worker.publication import adapter_parts, judged
from worker.report import Counts
from worker.rounds import Rounds

log = logging.getLogger("everlens.worker")

# The closed form of an adapter sees each exemplar once more. It is made when there was a round of
# tuning for so many of them at least, so that it costs less than the rounds did.
EXEMPLARS_A_ROUND = 32


@dataclass(slots=True)
class AdapterClock:
    """What rounds do to the adapter."""

    outbox: Outbox  # takes the versions
    rounds: Rounds
    attempts: Attempts  # at a batch, whose draw and publication count as parts of it
    patient: Executor  # for what nobody waits for
    lease: Lease
    counts: Counts
    every_rounds: int  # make an adapter, at least

    @property
    def learner(self) -> Learner:
        """What is known."""
        return self.outbox.learner

    @property
    def waits(self) -> bool:
        """Whether another adapter is to be published, now or after a pause."""
        return self.outbox.progress.rounds > 0 or self.outbox.progress.adapter_stale

    def draw(self) -> None:
        """Draw the round of tuning that the last batch asks for, behind its publication."""
        progress = self.outbox.progress
        if not progress.tunes:
            return
        drawn = self.learner.draw()
        progress.tunes, progress.waiting = False, 0
        progress.rounds += drawn is not None
        least = max(self.every_rounds, exemplars_seen(self.learner) / EXEMPLARS_A_ROUND)
        progress.adapter_due |= progress.rounds >= least
        progress.adapter_due &= self.waits
        with self.outbox.commit() as state:
            state.save_round(drawn)
        if drawn is not None:
            self.rounds.put(drawn)

    def commit_taken(self, wait_s: float = 0.0) -> None:
        """Commit the rounds that were taken since the last look."""
        taken = self.rounds.taken(wait_s)
        if not taken:
            return
        for done in taken:
            log.debug("batch %d: SIT loss %s", done.batch, done.losses)
        with self.outbox.commit() as state:
            state.save_tuning(taken[-1].tuner, [done.batch for done in taken])
        self.rounds.attempts.done(taken[-1].batch)

    def publish(self) -> None:
        """
        Put the adapter before the gate as a version; leave it out where that ends the learner.

        No round is owed, and the last version is the head.
        """
        progress = self.outbox.progress
        progress.rounds, progress.adapter_due, progress.adapter_stale = 0, False, False
        deaths = self.attempts.begin(progress.cursor)
        made = None if deaths >= ATTEMPTS and self._is_deadly_to_publish() else self._judged()
        if made is None:
            with self.outbox.commit() as state:
                state.save_accepted(self.learner)
            self.attempts.done()
            return
        manifest, parts = made
        self.counts.gate_passed += bool(parts)
        self.counts.gate_held_back += not parts
        if not parts:
            log.warning("the adapter is held back: %s", manifest.gate)
        progress.adapter_batch = self.learner.batch
        with self.outbox.version(manifest, parts) as state:
            state.save_accepted(self.learner)
        self.attempts.done()

    def _judged(self) -> tuple[Manifest, dict[str, bytes]] | None:
        """Return the next version and its parts, after the gate; None where there is no adapter."""
        through = self.lease.through
        parts = self.patient.submit(partial(adapter_parts, self.learner, through)).result()
        if not parts:
            return None
        progress, present = self.outbox.progress, self.outbox.snapshot
        judging = partial(judged, self.learner, progress, parts, present, through)
        return self.patient.submit(judging).result()

    def owe_again(self, settle: Callable[[], bool]) -> None:
        """
        Take the rounds that a death came before; leave one out where it is its reason.

        Args:
            settle: waits until no round is owed; False when told to stop before.
        """
        rounds = self.outbox.state.rounds()
        begun = {drawn.batch: self.rounds.attempts.begun(drawn.batch) for drawn in rounds}
        for drawn in rounds:
            # No child is forked from the middle of a step, and it has to see those before it taken.
            if begun[drawn.batch] >= ATTEMPTS and settle() and self._is_deadly(drawn):
                with self.outbox.commit() as state:
                    state.save_tuning(self.learner.tuner.state(), [drawn.batch])
            else:
                self.rounds.put(drawn)
        self._draw_again(settle)

    def _draw_again(self, settle: Callable[[], bool]) -> None:
        """Draw the round that a death came before; leave it out where it is its reason."""
        progress = self.outbox.progress
        if not progress.tunes:
            return
        if self.attempts.begin(progress.cursor) >= ATTEMPTS:
            if not settle():
                return
            pictures = len(self.learner.waiting)
            what = f"the steps on batch {self.learner.batch}"
            if self._ends_the_learner(self.learner.draw, pictures, what):
                self.learner.waiting = []  # so that none is drawn
        self.draw()
        self.attempts.done()

    def _is_deadly(self, drawn: Round) -> bool:
        take = partial(self.learner.take, drawn)
        return self._ends_the_learner(take, drawn.pictures, f"the steps on batch {drawn.batch}")

    def _is_deadly_to_publish(self) -> bool:
        learner = self.learner

        def work() -> None:  # without the lease: the connection to the log is the parent's
            if parts := adapter_parts(learner):
                judged(learner, self.outbox.progress, parts, self.outbox.snapshot)

        what = f"the adapter after batch {learner.batch}"
        return self._ends_the_learner(work, exemplars_seen(learner), what)

    def _ends_the_learner(self, work: Callable[[], object], pictures: int, what: str) -> bool:
        """Ask a child and not the count: kills from outside may not cost the steps."""
        failure = failure_aside(partial(self.outbox.generations.aside, work), allowed_s(pictures))
        if failure is not None:
            log.error("left out: %s, since %s", what, failure)
        return failure is not None
