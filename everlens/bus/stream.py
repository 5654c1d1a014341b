"""
The learner's side of the log: lease, read after the cursor, cut, trim. ③

The learner's own state owns the cursor; the log is never asked how far learning was. No consumer
group: there is one reader, and the order of the entries is part of the result.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from everlens.bus.connect import reaching_the_log
from everlens.bus.keys import Keys
from everlens.bus.scripts import raise_for, script, text
from everlens.errors import Fenced, StateError
from everlens.records import Entry, EntryKind

# Longer than a batch takes, so that a working learner does not lose it; a learner that is
# restarted over the same state need not wait for it.
LEASE_MS = 30_000

# Of a hash that are written at once.
_FIELDS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class LogState:
    """Where the log is: its epoch and those it continues, the last number given, learnt, and freed."""

    epoch: str
    seq: int
    done: int
    kept: int
    paused: str
    former: tuple[str, ...] = ()


class Stream:
    """One learner's connection to the log, holding its lease once `hold` was called."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.epoch = ""
        self.fence = 0
        self.held = ""  # why somebody holds learning, as of the last `hold`; empty if nobody does
        self.seq = 0  # the last number given, likewise
        self._control = client.register_script(script("control"))
        self._lease = client.register_script(script("lease"))
        self._pause = client.register_script(script("pause"))
        self._report = client.register_script(script("report"))
        self._trim = client.register_script(script("trim"))

    def state(self) -> LogState | None:
        """Return where the log is, or None when none was created here."""
        with reaching_the_log():
            meta = self.client.hgetall(self.keys.meta)
        if not meta:
            return None
        return LogState(
            epoch=text(meta[b"epoch"]),
            seq=int(meta[b"seq"]),
            done=int(meta[b"done"]),
            kept=int(meta[b"kept"]),
            paused=text(meta.get(b"paused", b"")),
            former=tuple(text(meta.get(b"former", b"")).split()),
        )

    def create(self) -> str:
        """Begin a log where there is none; return the epoch that holds."""
        with reaching_the_log():
            create = self.client.register_script(script("create"))
            return text(create(keys=[self.keys.meta], args=[uuid.uuid4().hex]))

    def reconcile(self, former: str, seq: int, cursor: int, head: tuple[int, str]) -> str:
        """
        Begin a new epoch that goes on from a state; return it.

        Args:
            former: the epochs that it continues, separated by blanks.
            seq: the highest number that was ever given.
            cursor: what the state has learnt or gives up; entries behind it stay.
            head: version and digest of the state, for a server that lost its head.

        Raises:
            Fenced: a learner is at work.
        """
        keys, epoch = self.keys, uuid.uuid4().hex
        with reaching_the_log():
            answer = self.client.register_script(script("reconcile"))(
                keys=[keys.meta, keys.head, keys.log, keys.waiting, keys.lease],
                args=[epoch, former, seq, cursor, f"{head[0]} {head[1]}" if head[0] else ""],
            )
        if text(answer[0]) == "HELD":
            raise Fenced("a learner is at work on this log; stop it first")
        return epoch

    def end_of_holes(self, cursor: int) -> int:
        """Return the last number behind `cursor` that is missing; `cursor` itself if none is."""
        behind, expected = cursor, cursor + 1
        while True:
            with reaching_the_log():
                rows: Any = self.client.xrange(self.keys.log, f"{expected}-0", "+", count=256)
            if not rows:
                return behind
            for entry_id, _ in rows:
                number = int(text(entry_id).partition("-")[0])
                behind = number - 1 if number != expected else behind
                expected = number + 1

    def hold(self, epoch: str, holder: str, cursor: int = 0) -> bool:
        """
        Take or renew the lease on this epoch; return False while another learner holds it.

        Args:
            epoch: of the log that the state was learnt from.
            holder: a name that belongs to the state, and outlives this process.
            cursor: the last entry that the state has learnt.

        Raises:
            OtherLog: the epoch is another one now.
            StateError: the log ends behind the cursor.
            Fenced: another learner held it since this one took it last.
        """
        with reaching_the_log():
            answer = self._lease(
                keys=[self.keys.meta, self.keys.lease], args=[epoch, holder, LEASE_MS, cursor]
            )
        if text(answer[0]) == "BEHIND":
            raise StateError(
                f"the log ends at entry {text(answer[1])}, behind the {cursor} that are learnt: "
                "accepted samples were lost; restore the newest copy of the log"
            )
        if text(answer[0]) == "HELD":
            if self.fence:
                raise Fenced("another learner took over the log; this one stops")
            return False
        raise_for(answer)
        fence = int(answer[1])
        if self.fence and fence != self.fence:
            raise Fenced("another learner held the log in between; this one stops")
        self.epoch, self.fence, self.held = epoch, fence, text(answer[2])
        self.seq = int(answer[3])
        return True

    def read(self, cursor: int, count: int) -> list[Entry]:
        """
        Return up to `count` entries after `cursor`, in order.

        Raises:
            StateError: a number is missing: the log lost entries that it had accepted.
            WireError is not raised here: payloads are looked at one by one by the caller.
        """
        with reaching_the_log():
            rows: Any = self.client.xrange(self.keys.log, f"{cursor + 1}-0", "+", count=count)
        entries = [
            Entry(
                seq=int(text(entry_id).partition("-")[0]),
                kind=EntryKind(text(fields[b"kind"])),
                payload=fields[b"payload"],
            )
            for entry_id, fields in rows
        ]
        numbers = [entry.seq for entry in entries]
        if numbers != list(range(cursor + 1, cursor + 1 + len(numbers))):
            raise StateError(
                f"the log has a hole after entry {cursor}: found {numbers[:3]}; restore the log "
                "from its backup or begin anew with another data directory"
            )
        return entries

    def wait(self, cursor: int, wait_ms: int) -> None:
        """Return when an entry after `cursor` exists, or after `wait_ms`."""
        with reaching_the_log():
            self.client.xread({self.keys.log: f"{cursor}-0"}, count=1, block=max(1, wait_ms))

    def append_control(self, kind: EntryKind, last_seq: int) -> bool:
        """
        Write a control entry right behind `last_seq`; return False when the log moved on.

        Raises:
            OtherLog, Fenced: this learner must stop.
        """
        assert kind is not EntryKind.SAMPLE
        with reaching_the_log():
            answer = self._control(
                keys=[self.keys.meta, self.keys.log],
                args=[self.epoch, self.fence, last_seq, kind.value],
            )
        if text(answer[0]) == "LATE":
            return False
        raise_for(answer)
        return True

    def trim(self, done: int, kept: int, id_window: int) -> None:
        """
        Let nobody wait for what is learnt, and free what no copy of the state needs.

        Args:
            done: the committed cursor.
            kept: the cursor of the oldest copy of the state that a damaged one falls back to.
            id_window: how many learnt ids are remembered.

        Raises:
            OtherLog, Fenced, BusError: this learner must stop.
        """
        keys = self.keys
        with reaching_the_log():
            answer = self._trim(
                keys=[
                    keys.meta,
                    keys.log,
                    keys.ids,
                    keys.id_order,
                    keys.dead,
                    keys.waiting,
                    keys.forgotten,
                    keys.reports,
                ],
                args=[self.epoch, self.fence, done, kept, id_window],
            )
        raise_for(answer)

    def report(self, fields: Mapping[str, object]) -> None:
        """Leave the learner's own figures where the service can show them to people."""
        self._tell(self.keys.learner, {n: json.dumps(value) for n, value in fields.items()})

    def tell_forgotten(self, seqs: Iterable[int], version: int) -> None:
        """Say of samples that a version is the first without them; ahead of its publication."""
        self._tell(self.keys.forgotten, {str(seq): str(version) for seq in seqs})

    def tell_reports(self, reports: Mapping[int, str]) -> None:
        """Say what forgettings did, as JSON by their seqs."""
        self._tell(self.keys.reports, {str(seq): report for seq, report in reports.items()})

    def _tell(self, key: str, fields: Mapping[str, str]) -> None:
        left = iter(fields.items())
        while some := list(itertools.islice(left, _FIELDS_AT_ONCE)):
            with reaching_the_log():
                self._report(keys=[key], args=[word for field in some for word in field])

    def pause(self, reason: str, holder: str) -> bool:
        """
        Refuse new samples from now on, with this reason; an empty one accepts them again.

        Does nothing and returns False while another than `holder` holds the lease: it is at work.
        """
        with reaching_the_log():
            answer = self._pause(keys=[self.keys.meta, self.keys.lease], args=[holder, reason])
        return text(answer[0]) != "HELD"
