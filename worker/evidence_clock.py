"""
The evidence clock: what is learnt or unlearnt in closed form, a commit and a version each. ⑤⑥

A batch is observed, or is forgettings, or one entry that goes on from an earlier version. Before
the last two no round of tuning is owed and the last version is the head.
"""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from everlens.artifact import Manifest, digest_of
from everlens.errors import PartError
from everlens.model.parts import build_snapshot
from everlens.records import Activation, DeadLetter
from worker.batch import Batch
from worker.forgetting import Named
from worker.learn.held_out import held_out_accuracy
from worker.learn.learner import Learner
from worker.lease import Lease
from worker.outbox import Outbox
from worker.poison import allowed_s, deadline
from worker.publication import (
    adapter_parts,
    adapter_parts_without,
    evidence_parts,
    go_back,
    is_adapters,
    next_manifest,
)
from worker.report import Counts

log = logging.getLogger("everlens.worker")


@dataclass(slots=True)
class EvidenceClock:
    """What a batch does to sums and buffer."""

    outbox: Outbox  # takes the versions
    patient: Executor  # for what nobody waits for
    lease: Lease
    counts: Counts
    batch_size: int  # pictures of a full batch

    @property
    def learner(self) -> Learner:
        """What is known."""
        return self.outbox.learner

    def observe(self, batch: Batch) -> None:
        """Take samples into sums and buffer."""
        with deadline(allowed_s(len(batch.samples))):
            observe = partial(self.learner.observe, batch.samples, self.outbox.snapshot)
            # A full batch is one of many, and nobody waits for each; what was cut is waited for.
            full = len(batch.samples) >= self.batch_size
            observation = self.patient.submit(observe).result() if full else observe()
        self.counts.dead += len(observation.unfit)
        progress = self.outbox.progress
        parts = evidence_parts(self.learner, observation)
        manifest = next_manifest(self.learner, progress, parts, cursor=batch.last_seq)
        progress.waiting += sum(not sample.refused for sample in batch.samples)
        self._ask_for(batch)
        with self.outbox.version(manifest, parts) as state:
            state.save_observation(self.learner, observation, progress)
            state.save_dead([*batch.dead, *observation.unfit], manifest.version)

    def forget(self, batch: Batch) -> None:
        """Unlearn what a batch of forgettings names; no step behind it sees any of that."""
        progress = self.outbox.progress
        named = Named(self.outbox.state, self.learner.class_index, batch.forgettings)
        forgotten = self.learner.forget(self.lease.through(named.rows()), named.classes)
        parts = evidence_parts(self.learner, forgotten)
        saved = self.outbox.state.saved_parts(n for n in progress.parts if is_adapters(n))
        # Its closed form was fitted on what was learnt by then, and on nothing that came later.
        known = named.classes_learnt_by(progress.adapter_batch)
        parts |= adapter_parts_without(saved, known)
        progress.adapter_stale |= bool(saved and known)
        manifest = next_manifest(self.learner, progress, parts, cursor=batch.last_seq)
        about_classes = self._without_classes(manifest, parts) if named.classes else {}
        self._ask_for(batch)
        log.info("%d samples are forgotten", len(forgotten.rows))
        tuned = self.learner.tuner.steps_drawn > 0
        with self.outbox.version(manifest, parts) as state:
            state.save_forgotten(self.learner, forgotten, progress, self.lease.through)
            state.save_dead([*batch.dead, *named.dead], manifest.version)
            reports = named.reports(forgotten, about_classes, adapter=tuned)
            state.save_reports(reports, manifest.version)

    def activate(self, batch: Batch, activation: Activation) -> None:
        """Go on from an earlier version, without what came after it."""
        try:
            go_back(self.learner, activation)
        except (PartError, ValueError) as error:
            letter = DeadLetter(batch.last_seq, "", f"version {activation.version}: {error}")
            self.observe(replace(batch, activation=None, dead=[letter]))
            return
        rows = self.outbox.state.rows_after(activation.learned_through)
        forgotten = self.learner.forget(self.lease.through(rows))
        log.warning(
            "going on from version %d; %d samples are set aside",
            activation.version,
            len(forgotten.rows),
        )
        progress = self.outbox.progress
        progress.parts = {n: d for n, d in progress.parts.items() if not is_adapters(n)}
        parts = evidence_parts(self.learner, None)
        if activation.adapter:
            parts |= adapter_parts(self.learner, self.lease.through)
        manifest = next_manifest(
            self.learner, progress, parts, cursor=batch.last_seq, restored_from=activation.version
        )
        progress.waiting = progress.rounds = 0
        progress.tunes = progress.adapter_stale = False
        progress.adapter_batch = self.learner.batch
        with self.outbox.version(manifest, parts) as state:
            state.save_forgotten(self.learner, forgotten, progress, self.lease.through)
            state.save_round(None)
            state.save_accepted(self.learner)

    def _ask_for(self, batch: Batch) -> None:
        """Note what the border of a batch asks for."""
        progress = self.outbox.progress
        progress.tunes = batch.tunes or progress.waiting >= self.batch_size
        progress.adapter_due = batch.publishes_adapter

    def _without_classes(self, manifest: Manifest, parts: dict[str, bytes]) -> dict[str, Any]:
        """Return how well the other classes are told apart, before and after some are unlearnt."""
        present = self.outbox.snapshot
        contents = {digest_of(part): part for part in parts.values()}
        candidate = build_snapshot(self.learner.backbone, manifest, contents, present)
        held_out, accuracy = held_out_accuracy(
            self.learner, [present, candidate], self.lease.through
        )
        before, after = (round(share, 4) for share in accuracy) if held_out else (None, None)
        return {"held_out": held_out, "before": before, "after": after}
