"""
The learner's loop, in the order in which it must happen. ④-⑦

    read → learn → commit → publish → trim, and beside it: tune → commit, then → publish.

A crash between any two repeats work and loses none: the commit owns the cursor, a publication and
a trim may be made twice, and a batch whose commit did not happen is learnt again to the same bits.
So is a round of tuning: drawn behind the publication of its batch, committed, taken beside the next.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from everlens import logs, tracing
from everlens.artifact import Manifest, digest_of
from everlens.bus.durability import check_durable
from everlens.bus.stream import LEASE_MS, Stream
from everlens.bus.versions import Publisher
from everlens.errors import LogUnavailable, OtherLog, PartError, StateError
from everlens.model.backbone import Backbone
from everlens.model.parts import build_snapshot
from everlens.model.snapshot import Snapshot, base_snapshot
from everlens.records import Activation, DeadLetter, EntryKind
from worker.batch import FORGETTINGS_MAX, Batch, cut, parse
from worker.commit import Progress, StateFile
from worker.forgetting import Named
from worker.generations import Generations
from worker.learn.learner import LabelledPixels, Learner, LearnerConfig
from worker.learn.tuning import Round
from worker.outage import Outage
from worker.poison import ATTEMPTS, Attempts, allowed_s, deadline, failure_aside, sorted_out
from worker.publication import (
    adapter_parts,
    adapter_parts_without,
    evidence_parts,
    go_back,
    is_adapters,
    is_made_once,
    judged,
    next_manifest,
)
from worker.rounds import OWED_MAX, Rounds, stand_back_with

log = logging.getLogger("everlens.worker")

Row = TypeVar("Row")
Made = TypeVar("Made")

_AWAY_S = 0.2  # between two attempts while the log does not answer
_IDLE_MS = 500  # between two looks at the log while nothing comes
_HELD_S = 0.2  # likewise, while somebody holds learning
_TUNING_MS = 50  # likewise, while rounds of tuning may end
_RENEWAL_S = LEASE_MS / 1000 / 6  # between two renewals of the lease in long work
_REPORT_S = 10.0  # between two reports at most, so that whoever looks knows the age of a silence

# The closed form of an adapter sees each exemplar once more. It is made when there was a round of
# tuning for so many of them at least, so that it costs less than the rounds did.
_EXEMPLARS_A_ROUND = 32


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


@dataclass(slots=True)
class Counts:
    """What this process has done since it began."""

    samples: int = 0
    dead: int = 0
    batches: int = 0
    busy_s: float = 0.0
    gate_passed: int = 0
    gate_held_back: int = 0


class Loop:
    """One learner over one log and one state file, from `start` until it is told to stop."""

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
        self.publisher = Publisher(stream)
        self.state = state
        self.generations = generations
        self.numerics = numerics
        self.learner = Learner(backbone, config)
        self.progress: Progress  # from `_begin` on
        self.attempts = Attempts(state.path.with_suffix(".attempts"))
        self.rounds = Rounds(
            self.learner, Attempts(state.path.with_suffix(".rounds-attempts")), threads
        )
        # For what may wait; the loop's own thread brings a label into the answers.
        self._patient = ThreadPoolExecutor(
            1, thread_name_prefix="patient", initializer=partial(stand_back_with, threads)
        )
        self._saved: Progress | None = None  # as the state file had it
        self._restored = False
        self.begun = False  # whether this learner holds the log
        self._stopping: Callable[[], bool] = lambda: False
        self.outage = Outage()
        self.snapshot: Snapshot = base_snapshot(backbone, config.adapter.top_blocks)
        self.unpublished: tuple[Manifest, dict[str, bytes]] | None = None
        self.waiting_since: float | None = None  # an entry is there, its batch has no border
        self.last_sample_at = time.monotonic()
        self.samples_per_s = 0.0
        self.publication_s = 0.0  # of the last adapter
        self.counts = Counts()
        self.reported_at = 0.0  # monotonic

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

    def _turn(self) -> Batch | None:
        """Do what is due; return the next batch, or None where none is to be learnt yet."""
        if not self.begun and not self._begin():
            time.sleep(_AWAY_S)
            return None
        self._keep_up()
        self._commit_taken()
        if self.stream.held:
            time.sleep(_HELD_S)
            return None
        if self.progress.adapter_due and not self._publish_adapter():
            return None
        if self.rounds.owed >= OWED_MAX:
            self._commit_taken(wait_s=_TUNING_MS / 1000)
            return None
        return self._next_batch()

    def _learn(self, batch: Batch) -> None:
        """Learn one batch; when told to stop before it could be, it is read again at the start."""
        started = time.monotonic()
        if self.attempts.begin(batch.last_seq) >= ATTEMPTS:
            # A child that is forked from the middle of a step could wait for ever.
            if not self._settle():
                return
            batch = self._sorted_out(batch)
        if batch.activation is not None:
            if not self._activate(batch, batch.activation):
                return
        else:
            if not batch.forgettings:
                self._observe(batch)
            elif not self._forget(batch):
                return
            self._publish_soon()
            self._draw()
        self.attempts.done()
        if self.progress.cursor >= self.generations.newest + self.pace.copy_every_entries:
            self.generations.copy()
        seconds = time.monotonic() - started
        self._measure(batch, seconds)
        for letter in batch.dead:
            log.warning("entry %d is not learnt: %s", letter.seq, letter.reason)
        log.debug("version %d in %.3f s", self.progress.version, seconds)

    # ③④ what comes next

    def _begin(self) -> bool:
        """Hold the log that belongs to the state; return False while another learner does."""
        check_durable(self.stream.client)
        if not self._restored:
            self._saved = self.state.restore(self.learner)
            self._restored = True
        epoch = self._epoch_of(self._saved)
        if self._saved is None:
            self._saved = Progress(
                epoch, uuid.uuid4().hex, self.backbone.fingerprint, self.numerics
            )
            with self.state.transaction():
                self.state.save_progress(self.learner, self._saved)
        self.progress = self._saved
        if not self.stream.hold(epoch, self.progress.holder):
            return False
        self._resume()
        self.stream.pause("", self.progress.holder)
        self._owe_again()
        self.begun = True  # last: whatever failed before is done again from the start
        return True

    def close(self) -> None:
        """Close the state, once a step that is being taken and a copy that is being made are done."""
        self.rounds.close()
        self._patient.shutdown()
        self.generations.close()
        self.state.close()

    @property
    def holder(self) -> str:
        """The name under which this state holds the lease; empty without a state."""
        return self._saved.holder if self._saved is not None else ""

    def _epoch_of(self, saved: Progress | None) -> str:
        """Return the epoch to learn from; the log must be the one that the state came from."""
        found = self.stream.state()
        if saved is None:
            if found is not None and found.kept > 0:
                raise StateError(
                    f"the log was learnt and freed up to entry {found.kept}, but there is no "
                    "state; restore the state file, or begin anew with another namespace"
                )
            if found is None and not self.pace.creates:
                raise StateError(
                    "there is neither a log nor a state; restore them, or begin with "
                    "`everlens create`"
                )
            return self.stream.create()  # or go on with one that still holds its first entry
        if found is None:
            raise StateError("the log is empty, but the state is not; restore the log")
        if found.epoch != saved.epoch:
            raise OtherLog("the log is another one than the state was learnt from")
        if found.seq < saved.cursor:
            raise StateError(
                f"the log ends at entry {found.seq}, behind the state's {saved.cursor}: accepted "
                "samples were lost; restore the newest copy of the log"
            )
        if found.kept > saved.cursor:
            raise StateError(
                f"the log was freed up to entry {found.kept}, the state ends at {saved.cursor}; "
                "restore a newer copy of the state"
            )
        return saved.epoch

    def _resume(self) -> None:
        """Bring the head and the snapshot to the committed state."""
        head_version, _ = self.publisher.head()
        parts = evidence_parts(self.learner, None)
        parts |= self.state.saved_parts(self.progress.parts)
        if self.progress.version == 0:
            return
        manifest = replace(
            next_manifest(
                self.learner,
                self.progress,
                parts,
                cursor=self.progress.cursor,
                gate=self.progress.gate,
                restored_from=self.progress.restored_from,
            ),
            version=self.progress.version,
            parent=self.progress.parent,
        )
        if manifest.digest != self.progress.digest:
            # The same sums give other bits here: another CPU, torch or setting. Serve what this
            # machine computes as a version of its own, so that head and state agree again.
            log.warning(
                "bits differ from version %d (made with %s, now %s); going on with a new version",
                self.progress.version,
                self.progress.numerics,
                self.numerics,
            )
            if head_version == self.progress.version:
                manifest = next_manifest(
                    self.learner, self.progress, parts, cursor=self.progress.cursor
                )
            self._advance(manifest)
            self.progress.numerics = self.numerics
            with self.state.transaction():
                self.state.save_progress(self.learner, self.progress)
        # Also where it is the head already: its trim may be what was cut short.
        self._exchange(manifest, parts)

    def _keep_up(self) -> None:
        """Renew the lease; publish and trim what is committed and not yet so."""
        # Each time, since an older log may be put under a learner that runs.
        self.stream.hold(self.progress.epoch, self.progress.holder, self.progress.cursor)
        self.generations.tend()
        if self.unpublished is None:
            if time.monotonic() - self.reported_at > _REPORT_S:
                self._report()
            return
        manifest, contents = self.unpublished
        head_version, _ = self.publisher.head()
        if manifest.version < head_version:
            # The state is an older copy, and learns again what was published before.
            self.publisher.check_again(manifest)
        else:
            missing = self.publisher.missing(sorted(contents))  # the others are the head's
            self.publisher.store({digest: contents[digest] for digest in missing})
            version = manifest.version
            # Of no other sample the id is remembered, by which somebody could ask.
            oldest = self.progress.cursor - self.pace.id_window
            forgotten = [seq for seq in self.state.forgotten(version) if seq > oldest]
            self.stream.tell_forgotten(forgotten, version)
            self.stream.tell_reports(self.state.reports(version))
            self.publisher.publish(manifest, self.state.dead_letters(version))
            self.publisher.collect(manifest.version)
        self.stream.trim(self.progress.cursor, self.generations.kept, self.pace.id_window)
        self.unpublished = None
        self._report()

    def _next_batch(self) -> Batch | None:
        """Return the next batch, or None after a wait in which its border did not come."""
        size = self.pace.batch_size
        entries = self.stream.read(self.progress.cursor, size)
        whole = cut(entries, size)
        if whole is None and len(entries) == size:  # of forgettings a batch takes more
            entries = self.stream.read(self.progress.cursor, FORGETTINGS_MAX)
            whole = cut(entries, size)
        now = time.monotonic()
        if whole is not None:
            self.waiting_since = None
            self.last_sample_at = now
            return parse(whole, size=self.backbone.pixels.size, name_fits=self.backbone.name_fits)
        if not entries:
            self.waiting_since = None
            progress = self.progress
            if self.rounds.owed:
                self.stream.wait(progress.cursor, _TUNING_MS)
            elif progress.waiting:
                self.stream.append_control(EntryKind.TUNE, progress.cursor)
            elif self._adapter_waits and now - self.last_sample_at > self._idle_s:
                self.stream.append_control(EntryKind.ADAPTER, progress.cursor)
            else:
                self.stream.wait(progress.cursor, _IDLE_MS)
            return None
        self.waiting_since = self.waiting_since or now
        left_s = self.waiting_since + self.pace.linger_s - now
        last_seq = entries[-1].seq
        if left_s > 0:
            self.stream.wait(last_seq, int(left_s * 1000) + 1)
        else:
            # What comes while a round is taken waits for the next one, which sees all of it.
            kind = EntryKind.CUT if self.rounds.owed else EntryKind.TUNE
            self.stream.append_control(kind, last_seq)
        return None

    # ⑤⑥⑦ what it changes

    def _observe(self, batch: Batch) -> None:
        """The evidence clock: sums and buffer, one commit, one version."""
        with deadline(allowed_s(len(batch.samples))):
            observe = partial(self.learner.observe, batch.samples, self.snapshot)
            # A full batch is one of many, and nobody waits for each; what was cut is waited for.
            full = len(batch.samples) >= self.pace.batch_size
            observation = self._patiently(observe) if full else observe()
        self.counts.dead += len(observation.unfit)
        parts = evidence_parts(self.learner, observation)
        manifest = next_manifest(self.learner, self.progress, parts, cursor=batch.last_seq)
        self._advance(manifest)
        progress = self.progress
        progress.waiting += sum(not sample.refused for sample in batch.samples)
        self._ask_for(batch)
        with self.state.transaction():
            self.state.save_observation(self.learner, observation, progress)
            self.state.save_parts({n: p for n, p in parts.items() if is_made_once(n)})
            self.state.save_dead([*batch.dead, *observation.unfit], manifest.version)
            self.state.save_progress(self.learner, progress)
        self._exchange(manifest, parts)

    def _ask_for(self, batch: Batch) -> None:
        """Note what the border of a batch asks for."""
        progress = self.progress
        progress.tunes = batch.tunes or progress.waiting >= self.pace.batch_size
        progress.adapter_due = batch.publishes_adapter

    def _draw(self) -> None:
        """Draw the round of tuning that the last batch asks for, behind its publication."""
        progress = self.progress
        if not progress.tunes:
            return
        drawn = self.learner.draw()
        progress.tunes, progress.waiting = False, 0
        progress.rounds += drawn is not None
        least = max(
            self.pace.adapter_every_rounds, self.learner.head_exemplars / _EXEMPLARS_A_ROUND
        )
        progress.adapter_due |= progress.rounds >= least
        progress.adapter_due &= self._adapter_waits
        with self.state.transaction():
            self.state.save_round(drawn)
            self.state.save_progress(self.learner, progress)
        if drawn is not None:
            self.rounds.put(drawn)

    def _commit_taken(self, wait_s: float = 0.0) -> None:
        """The adapter clock: commit the rounds that were taken since the last look."""
        taken = self.rounds.taken(wait_s)
        if not taken:
            return
        for done in taken:
            log.debug("batch %d: SIT loss %s", done.batch, done.losses)
        with self.state.transaction():
            self.state.save_tuning(taken[-1].tuner, [done.batch for done in taken])
            self.state.save_progress(self.learner, self.progress)
        self.rounds.attempts.done(taken[-1].batch)

    def _settle(self) -> bool:
        """Wait until no round is owed; return False when told to stop before."""
        while self.rounds.owed:
            if self._stopping():
                return False
            self._publish_soon()  # and renew the lease
            self._commit_taken(wait_s=_TUNING_MS / 1000)
        return True

    def _publish_adapter(self) -> bool:
        """Put the adapter before the gate as a version; return False when told to stop before."""
        # The state may be one version ahead of the head, never two: that one must be out.
        if not (self._settle() and self._publish_before_next()):
            return False
        started = time.monotonic()
        progress = self.progress
        parts = self._patiently(partial(adapter_parts, self.learner))
        manifest = None
        if parts:
            manifest, parts = self._patiently(
                partial(judged, self.learner, progress, parts, self.snapshot)
            )
            self.counts.gate_passed += bool(parts)
            self.counts.gate_held_back += not parts
            if not parts:
                log.warning("the adapter is held back: %s", manifest.gate)
            self._advance(manifest)
            progress.adapter_batch = self.learner.batch
        progress.rounds, progress.adapter_due, progress.adapter_stale = 0, False, False
        with self.state.transaction():
            self.state.save_accepted(self.learner)
            self.state.save_parts(parts)
            self.state.save_progress(self.learner, progress)
        if manifest is not None:
            self._exchange(manifest, parts)
        self._publish_soon()
        self.publication_s = time.monotonic() - started
        return True

    def _patiently(self, work: Callable[[], Made]) -> Made:
        """Return what work comes to that lets answers go first."""
        return self._patient.submit(work).result()

    @property
    def _adapter_waits(self) -> bool:
        """Whether another adapter is to be published, now or after a pause."""
        return self.progress.rounds > 0 or self.progress.adapter_stale

    @property
    def _idle_s(self) -> float:
        """
        How long nothing must have come before the adapter is published for that reason.

        At least as long as the last publication took: somebody who labels now and then would have
        to wait for one after each pause.
        """
        return max(self.pace.adapter_idle_s, self.publication_s)

    def _activate(self, batch: Batch, activation: Activation) -> bool:
        """Go on from an earlier version; return False when told to stop before."""
        if not (self._settle() and self._publish_before_next()):
            return False
        rows = self.state.rows_after(activation.learned_through)
        try:
            forgotten = go_back(self.learner, activation, rows)
        except (PartError, ValueError) as error:
            letter = DeadLetter(batch.last_seq, "", f"version {activation.version}: {error}")
            self._observe(replace(batch, activation=None, dead=[letter]))
            return True
        log.warning(
            "going on from version %d; %d samples are set aside", activation.version, len(rows)
        )
        progress = self.progress
        progress.parts = {n: d for n, d in progress.parts.items() if not is_adapters(n)}
        parts = evidence_parts(self.learner, None)
        if activation.adapter:
            parts |= adapter_parts(self.learner)
        manifest = next_manifest(
            self.learner, progress, parts, cursor=batch.last_seq, restored_from=activation.version
        )
        self._advance(manifest)
        progress.waiting = progress.rounds = 0
        progress.tunes = progress.adapter_stale = False
        progress.adapter_batch = self.learner.batch
        with self.state.transaction():
            self.state.save_forgotten(self.learner, forgotten, progress, self._held_through)
            self.state.save_round(None)
            self.state.save_accepted(self.learner)
            self.state.save_parts({n: p for n, p in parts.items() if is_made_once(n)})
            self.state.save_progress(self.learner, progress)
        self._exchange(manifest, parts)
        return True

    def _forget(self, batch: Batch) -> bool:
        """
        Unlearn what a batch of forgettings names; return False when told to stop before.

        Rounds that were drawn before are taken first: behind the version that is without a sample,
        no step sees it.
        """
        if not (self._settle() and self._publish_before_next()):
            return False
        progress = self.progress
        named = Named(self.state, self.learner.class_index, batch.forgettings)
        forgotten = self.learner.forget(self._held_through(named.rows()), named.classes)
        parts = evidence_parts(self.learner, forgotten)
        saved = self.state.saved_parts(n for n in progress.parts if is_adapters(n))
        # Its closed form was fitted on what was learnt by then, and on nothing that came later.
        known = named.classes_learnt_by(progress.adapter_batch)
        parts |= adapter_parts_without(saved, known)
        progress.adapter_stale |= bool(saved and known)
        manifest = next_manifest(self.learner, progress, parts, cursor=batch.last_seq)
        about_classes = self._without_classes(manifest, parts) if named.classes else {}
        self._advance(manifest)
        self._ask_for(batch)
        log.info("%d samples are forgotten", len(forgotten.rows))
        with self.state.transaction():
            self.state.save_forgotten(self.learner, forgotten, progress, self._held_through)
            self.state.save_parts({n: p for n, p in parts.items() if is_made_once(n)})
            self.state.save_dead([*batch.dead, *named.dead], manifest.version)
            self.state.save_reports(
                named.reports(forgotten, about_classes, adapter=self.learner.tuner.steps_drawn > 0),
                manifest.version,
            )
            self.state.save_progress(self.learner, progress)
        self._exchange(manifest, parts)
        return True

    def _held_through(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield rows, however many, and renew the lease while they are worked through."""
        renewed = time.monotonic()
        for row in rows:
            if time.monotonic() - renewed > _RENEWAL_S:
                renewed = time.monotonic()
                try:
                    self.stream.hold(self.progress.epoch, self.progress.holder)
                except LogUnavailable as error:  # half of them are gone: there is no way back
                    self.outage.noticed(error)
            yield row

    def _without_classes(self, manifest: Manifest, parts: dict[str, bytes]) -> dict[str, Any]:
        """Return how well the other classes are told apart, before and after some are unlearnt."""
        candidate = build_snapshot(
            self.backbone,
            manifest,
            {digest_of(part): part for part in parts.values()},
            self.snapshot,
        )
        held_out, accuracy = self.learner.held_out_accuracy([self.snapshot, candidate])
        before, after = (round(share, 4) for share in accuracy) if held_out else (None, None)
        return {"held_out": held_out, "before": before, "after": after}

    def _owe_again(self) -> None:
        """Take the rounds that a death came before; leave one out where it is its reason."""
        rounds = self.state.rounds()
        begun = {drawn.batch: self.rounds.attempts.begun(drawn.batch) for drawn in rounds}
        for drawn in rounds:
            # No child is forked from the middle of a step, and it has to see those before it taken.
            if begun[drawn.batch] >= ATTEMPTS and self._settle() and self._is_deadly(drawn):
                with self.state.transaction():
                    self.state.save_tuning(self.learner.tuner.state(), [drawn.batch])
                    self.state.save_progress(self.learner, self.progress)
            else:
                self.rounds.put(drawn)
        self._draw_again()

    def _draw_again(self) -> None:
        """Draw the round that a death came before; leave it out where it is its reason."""
        progress = self.progress
        if not progress.tunes:
            return
        if self.attempts.begin(progress.cursor) >= ATTEMPTS:
            if not self._settle():
                return
            pictures = len(self.learner.waiting)
            if self._ends_the_learner(self.learner.draw, pictures, self.learner.batch):
                self.learner.waiting = []  # so that none is drawn
        self._draw()
        self.attempts.done()

    def _is_deadly(self, drawn: Round) -> bool:
        take = partial(self.learner.take, drawn)
        return self._ends_the_learner(take, drawn.pictures, drawn.batch)

    def _ends_the_learner(self, work: Callable[[], object], pictures: int, batch: int) -> bool:
        """Ask a child and not the count: kills from outside may not cost the steps."""
        failure = failure_aside(partial(self._try_aside, work), allowed_s(pictures))
        if failure is not None:
            log.error("the steps on batch %d are left out: %s", batch, failure)
        return failure is not None

    def _sorted_out(self, batch: Batch) -> Batch:
        """Return the batch without the samples that end the learner."""
        log.warning("the batch up to %d never ended; trying its samples aside", batch.last_seq)
        fit, dead = sorted_out(batch.samples, self._try)
        return replace(batch, samples=fit, dead=[*batch.dead, *dead])

    def _try(self, samples: Sequence[LabelledPixels]) -> None:
        self._try_aside(lambda: self.learner.observe(samples, self.snapshot))

    def _try_aside(self, work: Callable[[], object]) -> None:
        """Do something in a child, where all of it is thrown away."""
        self.generations.let_go()
        work()

    def _advance(self, manifest: Manifest) -> None:
        self.progress.parent = manifest.parent
        self.progress.version = manifest.version
        self.progress.digest = manifest.digest
        self.progress.gate = manifest.gate
        self.progress.restored_from = manifest.restored_from
        self.progress.parts = dict(manifest.parts)
        self.progress.cursor = manifest.learned_through

    def _exchange(self, manifest: Manifest, parts: dict[str, bytes]) -> None:
        contents = {digest_of(part): part for part in parts.values()}
        self.snapshot = build_snapshot(self.backbone, manifest, contents, self.snapshot)
        self.unpublished = (manifest, contents)

    def _publish_soon(self) -> None:
        """Publish now, so that an answer knows the sample at once; later where the log is away."""
        try:
            self._keep_up()
        except LogUnavailable as error:
            self.outage.noticed(error)

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

    def _measure(self, batch: Batch, seconds: float) -> None:
        samples = len(batch.samples)
        self.counts.samples += samples
        self.counts.dead += len(batch.dead)
        self.counts.batches += 1
        self.counts.busy_s += seconds
        if samples:
            rate = samples / max(seconds, 1e-6)
            self.samples_per_s = (
                rate if not self.samples_per_s else (0.9 * self.samples_per_s + 0.1 * rate)
            )

    def _report(self) -> None:
        learner, prequential = self.learner, self.learner.prequential
        disk = shutil.disk_usage(self.state.path.parent)
        self.reported_at = time.monotonic()
        self.stream.report(
            {
                "reported_at": round(time.time(), 3),
                "version": self.progress.version,
                "learned_through": self.progress.cursor,
                "batch": learner.batch,
                "samples": learner.samples,
                "classes": len(learner.class_names),
                "exemplars": len(learner.replay),
                "exemplar_bytes": learner.replay.bytes,
                "prequential_accuracy": prequential.accuracy,
                "prequential_accuracy_recent": prequential.recent_accuracy,
                "prequential_samples": prequential.scored,
                "forgetting": learner.records.forgetting,
                "fusion": asdict(learner.fusing.fusion()),
                "expert_recall": learner.records.expert_recall,
                "class_weight_max": round(float(learner.class_weights().max()), 4)
                if learner.class_names
                else None,
                "samples_per_s": round(self.samples_per_s, 2),
                "adapter_batch": self.progress.adapter_batch,
                "rounds_owed": self.rounds.owed,
                "counts": asdict(self.counts),
                "disk_free_bytes": disk.free,
                "disk_bytes": disk.total,
                "numerics": self.numerics,
            }
        )
