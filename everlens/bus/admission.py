"""
The service's side of the log: admit samples, and say what became of one. ②③

A reply of the admission script means that the entries are on disk (`appendfsync always`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from everlens.bus.connect import reaching_the_log
from everlens.bus.keys import Keys
from everlens.bus.scripts import raise_for, script, text
from everlens.bus.witness import Witness
from everlens.errors import (
    IdConflict,
    LearningPaused,
    LogBehind,
    LogUnavailable,
    NewClass,
    OtherLog,
    QueueFull,
    TooManyClasses,
)
from everlens.records import EntryKind, Receipt

# Of the backlog, a tenant may have so many times what is free: alone half of it, and of eight who fill
# it at once each has a ninth, and a ninth is left.
SHARE = 1


@dataclass(frozen=True, slots=True)
class Admittable:
    """
    One entry ready for the log.

    Args:
        id: makes repeats harmless.
        digest: of what the client sent.
        payload: what the learner reads.
        label: the class that it names, empty for none.
        tenant: whose share of the backlog it takes; empty for nobody's.
        may_be_new: whether `label` may be a class that was never accepted before.
        kind: what it asks of the learner; by `FORGET` the class `label` is no longer known.
    """

    id: str
    digest: str
    payload: bytes
    label: str = ""
    tenant: str = ""
    may_be_new: bool = True
    kind: EntryKind = EntryKind.SAMPLE

    @property
    def remembered(self) -> str:
        """What is kept of it under its id: the digest, behind the kind where it has no picture."""
        pictured = self.kind in {EntryKind.SAMPLE, EntryKind.REJECT}
        return self.digest if pictured else f"{self.kind.value} {self.digest}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """What is remembered of an id; see `Admittable.remembered`."""

    seq: int
    remembered: str

    @property
    def is_picture(self) -> bool:
        """Whether it is a sample or a rejection, which can be learnt and forgotten."""
        return " " not in self.remembered


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What may wait at most, and how many classes there may be."""

    samples_max: int
    bytes_max: int
    classes_max: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much waits: entries and bytes behind what the learner has committed."""

    seq: int
    done: int
    bytes: int
    paused: str
    held: str

    @property
    def entries(self) -> int:
        return self.seq - self.done


@dataclass(frozen=True, slots=True)
class SampleState:
    """
    What became of an entry: waiting (all None), learnt by a version, dead, or forgotten by one.

    `report` is what a forgetting did, once it is learnt.
    """

    seq: int
    version: int | None = None
    dead_reason: str | None = None
    forgotten_by: int | None = None
    report: dict[str, Any] | None = None


class Admission:
    """Appends samples within the limits; one instance a service process."""

    def __init__(
        self, client: redis.asyncio.Redis, keys: Keys, limits: AdmissionLimits, witness: Witness
    ) -> None:
        self.client = client
        self.keys = keys
        self.limits = limits
        self.witness = witness
        self._admit = client.register_script(script("admit"))
        self._hold = client.register_script(script("hold"))
        self._epoch = ""

    async def admit(self, samples: Sequence[Admittable]) -> list[Receipt]:
        """
        Append all samples or none; a known id with the same digest gives its first seq again.

        Raises:
            IdConflict: an id was used with another body.
            QueueFull: the backlog is at its limit, or this tenant's share of it is.
            TooManyClasses, NewClass: a name that may not become a class.
            LearningPaused: the learner does not take samples now.
            LogUnavailable: unknown whether they were accepted; the same ids may be sent again.
            OtherLog: the log was exchanged while this service ran, or before.
            LogBehind: the log lost what was acknowledged.
        """
        if not self._epoch:
            self._epoch = await self._read_epoch()
        args: list[str | bytes | int] = [
            self._epoch,
            self._acknowledged(),
            self.limits.samples_max,
            self.limits.bytes_max,
            self.limits.classes_max,
            SHARE,
        ]
        for sample in samples:
            args += [
                sample.kind.value,
                sample.id,
                sample.remembered,
                sample.tenant,
                sample.label,
                int(sample.may_be_new),
                sample.payload,
            ]
        keys = self.keys
        with reaching_the_log():
            answer = await self._admit(
                keys=[keys.meta, keys.log, keys.ids, keys.id_order, keys.labels, keys.waiting],
                args=args,
            )
        if text(answer[0]) == "EPOCH":  # reconciled since, or exchanged; nothing was written
            self._epoch = await self._read_epoch()
            return await self.admit(samples)
        await self._raise_for(answer)
        receipts = [
            Receipt(id=sample.id, seq=int(seq), repeated=text(how) == "repeat")
            for sample, (seq, how) in zip(samples, answer[1], strict=True)
        ]
        self.witness.note(self._epoch, max(receipt.seq for receipt in receipts))
        return receipts

    def _acknowledged(self) -> int:
        """Return the last number that this log has to hold; a reconciled one begins with its own."""
        before = self.witness.read()
        return before.seq if before.epoch == self._epoch else 0

    async def _raise_for(self, answer: list[bytes]) -> None:
        match text(answer[0]):
            case "CONFLICT":
                raise _conflict(text(answer[1]))
            case "FULL":
                raise QueueFull(
                    f"{text(answer[1])} samples wait to be learnt; send this again later",
                    retry_after_s=await self._drain_s(),
                )
            case "SHARE":
                raise QueueFull(
                    "your share of the samples that may wait is used up; send this again later",
                    retry_after_s=await self._drain_s(),
                )
            case "CLASSES":
                raise TooManyClasses(
                    f"there are {text(answer[1])} classes, the most that EVERLENS_MAX_CLASSES "
                    "allows; use a name that is known, or raise it"
                )
            case "NEWCLASS":
                raise NewClass(
                    f"{text(answer[1])!r} is no class yet, and this key may not make one; use a "
                    "name of GET /classes, or a key with the scope `classes`"
                )
            case "PAUSED":
                raise LearningPaused(f"learning is paused: {text(answer[1])}")
            case "BEHIND":
                raise LogBehind(
                    f"the log admitted up to entry {text(answer[1])}, but {self.witness.read().seq} "
                    "was acknowledged: accepted samples were lost; restore the newest copy of the "
                    "log, or give them up with `everlens reconcile`"
                )
        raise_for(answer)

    async def _read_epoch(self) -> str:
        """Return the epoch of the log; it must go on from the one that this service knows."""
        with reaching_the_log():
            found, former = await self.client.hmget(self.keys.meta, ["epoch", "former"])
        epoch, known = text(found or b""), self._epoch or self.witness.read().epoch
        if not (epoch or known):
            raise LogUnavailable("the learner has not begun its log yet; try again in a moment")
        if known and known != epoch and known not in text(former or b"").split():
            raise OtherLog(
                "the log is another one than the one that acknowledged samples here; restore it, "
                "or give what was lost up with `everlens reconcile`"
            )
        return epoch

    async def _drain_s(self) -> int:
        """Return how long the learner needs for a fifth of the backlog, between 1 and 60 s."""
        backlog, learner = await self.backlog(), await self.learner()
        rate = learner.get("samples_per_s")
        if not isinstance(rate, int | float) or rate <= 0:
            return 5
        return int(min(60, max(1, 0.2 * backlog.entries / rate)))

    async def backlog(self) -> Backlog:
        """Return how much waits."""
        with reaching_the_log():
            fields = await self.client.hmget(
                self.keys.meta, ["seq", "done", "bytes", "paused", "held"]
            )
        seq, done, size, paused, held = (text(field or b"") for field in fields)
        return Backlog(int(seq or 0), int(done or 0), int(size or 0), paused, held)

    async def hold(self, reason: str) -> None:
        """
        Let the learner take nothing up, whoever it is; an empty reason lets it go on.

        Raises:
            LogUnavailable, OtherLog: it is not done, or that is unknown.
        """
        self._epoch = await self._read_epoch()
        with reaching_the_log():
            raise_for(await self._hold(keys=[self.keys.meta], args=[self._epoch, reason]))

    async def has_class(self, label: str) -> bool:
        """Return whether a class of this name was accepted, learnt or not, and not forgotten since."""
        with reaching_the_log():
            return bool(await self.client.sismember(self.keys.labels, label))

    async def learner(self) -> dict[str, Any]:
        """Return the learner's own report (see `worker.report`), empty before the first batch."""
        with reaching_the_log():
            fields = await self.client.hgetall(self.keys.learner)
        return {text(name): json.loads(value) for name, value in fields.items()}

    async def learner_present(self) -> bool:
        """Return whether a learner holds the log's lease now."""
        with reaching_the_log():
            return bool(await self.client.strlen(self.keys.lease))

    async def accepted(self, sample_id: str) -> Accepted | None:
        """Return what is remembered of an id, or None where it is not known."""
        with reaching_the_log():
            known = await self.client.hget(self.keys.ids, sample_id)
        if known is None:
            return None
        seq, _, remembered = text(known).partition(":")
        return Accepted(int(seq), remembered)

    async def seq_of(self, sample_id: str) -> int | None:
        """Return the number of an accepted entry, or None for an id that is not known."""
        known = await self.accepted(sample_id)
        return None if known is None else known.seq

    async def receipt_of(self, sample_id: str, digest: str) -> Receipt | None:
        """
        Return the receipt of a sample that was accepted with this digest, None for an unknown id.

        Raises:
            IdConflict: the id was used with another body.
        """
        known = await self.accepted(sample_id)
        if known is None:
            return None
        if known.remembered != digest:
            raise _conflict(sample_id)
        return Receipt(sample_id, known.seq, repeated=True)

    async def state_of(self, seq: int) -> SampleState:
        """Return what became of the sample with this number."""
        with reaching_the_log():
            async with self.client.pipeline(transaction=True) as pipe:
                pipe.hget(self.keys.dead, str(seq))
                pipe.zrangebyscore(self.keys.learned, seq, "+inf", start=0, num=1)
                pipe.hget(self.keys.forgotten, str(seq))
                pipe.hget(self.keys.reports, str(seq))
                reason, versions, forgotten, report = await pipe.execute()
        if reason is not None:
            return SampleState(seq, dead_reason=text(reason))
        return SampleState(
            seq,
            version=int(versions[0]) if versions else None,
            forgotten_by=None if forgotten is None else int(forgotten),
            report=None if report is None else json.loads(report),
        )


def _conflict(sample_id: str) -> IdConflict:
    return IdConflict(f"id {sample_id!r} was used before with another body; send it under a new id")
