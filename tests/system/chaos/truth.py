"""
The checker: what was logged, what was learnt, what is published. Shares no code with the system.

The log is read from the server's own append-only file, where every accepted entry stands even
after it was trimmed; the state from SQLite; the head by plain commands. Nothing of `everlens`,
`worker` or `service` is imported here, and a test holds it to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
import redis

_INCREMENT = re.compile(r"\.(\d+)\.incr\.aof$")
_KEPT = "kept-by-the-checker"

# What names the process that learnt rather than what it learnt.
_OF_THE_RUN = ("epoch", "holder")


@dataclass(frozen=True, slots=True)
class Logged:
    """One entry as it was executed; `id` is empty for control entries and unreadable payloads."""

    seq: int
    kind: str
    fields: tuple[bytes, ...]  # as they were written, names and values in turn
    id: str


@dataclass(frozen=True, slots=True)
class Learnt:
    """The committed state: a digest of each table, and what became of which entry."""

    tables: dict[str, str]
    learnt: list[int]
    aside: list[int]  # learnt once, and unlearnt by an activation or a forgetting
    dead: dict[int, str]
    cursor: int
    adapter_waits: bool


@dataclass(frozen=True, slots=True)
class Published:
    """The head, and the digest of every part that it names, as they lie in the server."""

    version: int
    digest: str
    parts: dict[str, str]
    sound: bool  # all bytes have the digests they are named by


@dataclass(slots=True)
class Findings:
    """What does not agree; empty lists when all is well."""

    lost: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.double or self.different)

    def __str__(self) -> str:
        return "; ".join(
            f"{name} {len(found)}: {', '.join(found[:6])}"
            for name in ("lost", "double", "different")
            if (found := getattr(self, name))
        )


# The log


def keep_increments(directory: Path) -> None:
    """Hold on to the files that a rewrite would delete; to be called before it."""
    kept = directory / _KEPT
    kept.mkdir(exist_ok=True)
    for path in (directory / "appendonlydir").glob("*.incr.aof"):
        with contextlib.suppress(FileExistsError):
            os.link(path, kept / path.name)


def logged(directory: Path, namespace: str) -> list[Logged]:
    """Return every entry of a log that was ever executed, in the order of execution."""
    files = {
        int(match.group(1)): path
        for folder in (_KEPT, "appendonlydir")
        for path in (directory / folder).glob("*.incr.aof")
        if (match := _INCREMENT.search(path.name))
    }
    stream = f"{{{namespace}}}:log".encode()
    entries = []
    for number in sorted(files):
        reader = hiredis.Reader()
        reader.feed(files[number].read_bytes())
        while (command := reader.gets()) is not False:
            if command[0].upper() == b"XADD" and command[1] == stream:
                entries.append(_entry(command[2], command[3:]))
    return entries


def _entry(number: bytes, fields: list[bytes]) -> Logged:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    seq, kind = int(number.partition(b"-")[0]), named[b"kind"].decode()
    return Logged(seq, kind, tuple(fields), _id_of(named[b"payload"]))


def _id_of(payload: bytes) -> str:
    try:
        _, length = struct.unpack_from(">HI", payload)
        return str(json.loads(payload[6 : 6 + length])["id"])
    except (struct.error, ValueError, KeyError, TypeError):
        return ""


def digest_of_log(entries: Iterable[Logged]) -> str:
    """Return what names a log by its content."""
    digest = hashlib.sha256()
    for entry in entries:
        for value in (b"%d" % entry.seq, *entry.fields):
            digest.update(b"%d " % len(value) + value)
    return digest.hexdigest()


# The state


def learnt(path: Path) -> Learnt | None:
    """Return the committed state, read in one transaction; None before the first commit."""
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.OperationalError:
        return None
    try:
        db.execute("BEGIN")
        return _learnt(db)
    except sqlite3.OperationalError:
        return None  # being made at this moment
    finally:
        db.close()


def _learnt(db: sqlite3.Connection) -> Learnt | None:
    head = db.execute("SELECT record FROM head").fetchone()
    if head is None:
        return None
    progress = json.loads(head[0])["progress"]
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return Learnt(
        tables={name: _digest_of_table(db, name) for name in names} | _digests_of_blobs(db),
        learnt=_numbers(db, "samples"),
        aside=_numbers(db, "forgotten"),
        dead=dict(db.execute("SELECT seq, reason FROM dead")),
        cursor=progress["cursor"],
        adapter_waits=bool(progress["rounds"] or progress["waiting"]),
    )


def _digests_of_blobs(db: sqlite3.Connection) -> dict[str, str]:
    """Return a digest of each named blob, so that a difference has a name."""
    rows = db.execute("SELECT name, content FROM blobs ORDER BY name")
    return {f"blobs: {name}": hashlib.sha256(content).hexdigest() for name, content in rows}


def _numbers(db: sqlite3.Connection, name: str) -> list[int]:
    return [seq for (seq,) in db.execute(f"SELECT seq FROM {name} ORDER BY seq")]


def _digest_of_table(db: sqlite3.Connection, name: str) -> str:
    digest = hashlib.sha256()
    for row in db.execute(f'SELECT * FROM "{name}" ORDER BY 1'):
        values = _without_the_run(row) if name == "head" else row
        for value in values:
            content = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(f"{type(value).__name__} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _without_the_run(row: tuple[Any, ...]) -> list[Any]:
    record = json.loads(row[1])
    for name in _OF_THE_RUN:
        del record["progress"][name]
    return [json.dumps(record, sort_keys=True)]


# The head


def published(client: redis.Redis, namespace: str) -> Published | None:
    """Return the head with the digests of what lies under it; None before the first version."""
    head: Any = client.get(f"{{{namespace}}}:head")
    if head is None:
        return None
    version, _, digest = head.decode().partition(" ")
    manifest: Any = client.get(f"{{{namespace}}}:manifest:{version}")
    if manifest is None:
        return Published(int(version), digest, {}, sound=False)
    parts = json.loads(manifest)["parts"]
    contents: Any = client.mget([f"{{{namespace}}}:part:{part}" for part in parts.values()])
    found = {
        name: hashlib.sha256(content or b"").hexdigest()
        for name, content in zip(parts, contents, strict=True)
    }
    sound = found == parts and hashlib.sha256(manifest).hexdigest() == digest
    return Published(int(version), digest, found, sound)


# The verdict


def check(
    acked: Mapping[str, set[int]], entries: list[Logged], state: Learnt, complete: bool = True
) -> Findings:
    """
    Return what is lost or double.

    Args:
        acked: each acknowledged id with the numbers that it was acknowledged under.
        entries: all that were ever logged.
        state: what was learnt of them.
        complete: whether the log must have been learnt to its end.
    """
    findings = Findings()
    numbers = [entry.seq for entry in entries]
    if numbers != list(range(1, len(numbers) + 1)):
        findings.different.append(f"the log's numbers are not 1 to {len(numbers)}")
    places: dict[str, list[int]] = {}
    for entry in entries:
        if entry.kind == "sample" and entry.id:
            places.setdefault(entry.id, []).append(entry.seq)
    for name, seqs in acked.items():
        if name not in places:
            findings.lost.append(f"{name} acknowledged as {sorted(seqs)}, not in the log")
        elif seqs != set(places[name]):
            findings.different.append(f"{name} acknowledged as {sorted(seqs)}, is {places[name]}")
    findings.double += [f"{name} logged at {at}" for name, at in places.items() if len(at) > 1]
    done = Counter([*state.learnt, *state.aside, *state.dead])
    samples = {e.seq for e in entries if e.kind == "sample" and (complete or e.seq <= state.cursor)}
    findings.double += [f"{seq} of two fates" for seq, times in done.items() if times > 1]
    findings.lost += [f"{seq} neither learnt nor dead" for seq in sorted(samples - set(done))]
    # A request to activate or to forget may be dead too, but nothing else is a sample's fate.
    requests = {entry.seq for entry in entries if entry.kind in {"activate", "forget"}}
    requests &= set(state.dead)
    strangers = sorted(set(done) - samples - requests)
    findings.different += [f"{seq} learnt, and no sample" for seq in strangers]
    return findings


def compare(
    state: Learnt, head: Published | None, undisturbed: Learnt, expected: Published | None
) -> list[str]:
    """Return in what a run differs from the undisturbed one over the same log."""
    names = sorted(state.tables.keys() | undisturbed.tables.keys())
    different = [
        f"table {name}" for name in names if state.tables.get(name) != undisturbed.tables.get(name)
    ]
    if head != expected:
        different.append(f"head {_head(head)} where the undisturbed run has {_head(expected)}")
    if head is not None and not head.sound:
        different.append("published bytes do not have their digests")
    return different


def _head(head: Published | None) -> str:
    return "none" if head is None else f"{head.version} {head.digest[:12]}"
