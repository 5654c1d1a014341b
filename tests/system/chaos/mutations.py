"""
The protocol, broken on purpose: one small change each, patched into a forked worker or service.

A campaign that does not fail with one of these proves nothing without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import everlens.bus.admission
import everlens.bus.stream
import everlens.bus.versions
import worker.learn.learner
import worker.learn.tuning
import worker.reading
from everlens.bus.admission import Admission
from everlens.bus.scripts import script
from everlens.bus.stream import Stream
from everlens.bus.witness import Witness
from everlens.errors import LogUnavailable
from everlens.records import Entry, EntryKind, Receipt
from worker.batch import Batch
from worker.evidence_clock import EvidenceClock

MUTATIONS: dict[str, Mutation] = {}


@dataclass(frozen=True, slots=True)
class Mutation:
    """One broken rule: who is changed, and how."""

    role: str
    patch: Callable[[], None]


def mutation(role: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a patch under its function's name."""

    def register(patch: Callable[[], None]) -> Callable[[], None]:
        MUTATIONS[patch.__name__.replace("_", "-")] = Mutation(role, patch)
        return patch

    return register


def replace(owner: object, name: str, value: object) -> None:
    """Exchange a function of the system in this process."""
    assert hasattr(owner, name), f"the system has no {name} any more"
    setattr(owner, name, value)


@mutation("worker")
def timing_cuts_batches() -> None:
    """A batch is whatever is there when the worker looks."""

    def whatever(entries: Sequence[Entry], batch_size: int) -> list[Entry] | None:
        for place, entry in enumerate(entries[:batch_size]):
            if entry.kind is not EntryKind.SAMPLE:
                return list(entries[: place + 1])
        return list(entries[:batch_size]) or None

    replace(worker.reading, "cut", whatever)


@mutation("worker")
def cursor_before_learning() -> None:
    """The cursor is committed when a batch is taken, not with what was learnt from it."""
    observe = EvidenceClock.observe

    def early(clock: EvidenceClock, batch: Batch) -> None:
        progress = clock.outbox.progress
        cursor, progress.cursor = progress.cursor, batch.last_seq
        with clock.outbox.commit():
            pass
        progress.cursor = cursor
        observe(clock, batch)

    replace(EvidenceClock, "observe", early)


@mutation("worker")
def trim_before_commit() -> None:
    """The log is freed when a batch is taken."""
    observe = EvidenceClock.observe

    def early(clock: EvidenceClock, batch: Batch) -> None:
        outbox = clock.outbox
        outbox.stream.trim(batch.last_seq, batch.last_seq, outbox.id_window)
        observe(clock, batch)

    replace(EvidenceClock, "observe", early)


@mutation("worker")
def copies_are_not_kept_for() -> None:
    """The log is freed as far as it is learnt, though a copy of the state is older."""
    trim = Stream.trim

    def whole(stream: Stream, done: int, _: int, id_window: int) -> None:
        trim(stream, done, done, id_window)

    replace(Stream, "trim", whole)


@mutation("worker")
def randomness_of_the_process() -> None:
    """Draws come from one generator that a restart begins anew."""
    shared = torch.Generator().manual_seed(0)
    for module in (worker.learn.learner, worker.learn.tuning):
        replace(module, "generator_for", lambda *_: shared)


@mutation("worker")
def no_fence() -> None:
    """Whoever held the lease once goes on, and the scripts let it."""
    hold = Stream.hold

    def believing(stream: Stream, *belonging: Any) -> bool:
        return True if stream.fence else hold(stream, *belonging)

    replace(Stream, "hold", believing)
    for module in (everlens.bus.stream, everlens.bus.versions):
        replace(module, "script", lambda name: _without("FENCED", script(name)))


@mutation("service")
def no_idempotency_record() -> None:
    """An accepted id is not remembered."""
    replace(
        everlens.bus.admission,
        "script",
        lambda name: _without("redis.call('HSET', ids", script(name)),
    )


@mutation("service")
def unknown_is_accepted() -> None:
    """A lost reply is taken for a yes."""
    admit = Admission.admit

    async def hopeful(admission: Admission, samples: Sequence[Any]) -> list[Receipt]:
        try:
            return await admit(admission, samples)
        except LogUnavailable:
            return [Receipt(sample.id, 1, repeated=False) for sample in samples]

    replace(Admission, "admit", hopeful)


@mutation("service")
def no_witness() -> None:
    """Nothing beside the log remembers what was acknowledged."""
    replace(Witness, "note", lambda *_: None)


def _without(words: str, text: str) -> str:
    lines = text.splitlines()
    kept = [line for line in lines if words not in line]
    assert len(kept) < len(lines) or "FENCED" in words, "the mutation changes nothing"
    return "\n".join(kept)
