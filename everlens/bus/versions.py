"""
Versions: the learner stores parts and moves the head, the service follows it. ⑦⑧

The head is the only thing readers follow. A message on its channel is a hint; polling gives
certainty, since a message may be lost at any reconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import redis
import redis.asyncio

from everlens.artifact import (
    MANIFEST_BYTES_MAX,
    PART_BYTES_MAX,
    Manifest,
    check_part,
    decode_manifest,
)
from everlens.bus.connect import is_passing, reaching_the_log
from everlens.bus.keys import Keys
from everlens.bus.scripts import raise_for, script, text
from everlens.bus.stream import Stream
from everlens.errors import Diverged, LogUnavailable, OtherLog, PartError
from everlens.records import DeadLetter

VERSIONS_KEPT = 8
LINEAGE_MAX = 10_000
_HEAD = re.compile(r"(\d{1,16}) ([0-9a-f]{64})")
_HEAD_BYTES_MAX = 16 + 1 + 64
# Read at once: a reply has two seconds, and so a part of any size comes over a line of 1 Mbit/s. A
# part of 64 MB over loopback: 269 ms, in ranges of 1 MiB 237 and of 64 KiB 368.
_RANGE_BYTES = 1 << 18


class Publisher:
    """
    The learner's half: only the holder of the lease gets anything done.

    It remembers which parts the kept versions name, so that of thousands it asks for the new ones.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._named: dict[int, frozenset[str]] = {}  # version → digests of its parts
        self._head = ""  # digest of the head, if this publisher made it, with all its parts there
        self.client = stream.client
        self.keys = stream.keys
        self._publish = self.client.register_script(script("publish"))
        self._collect = self.client.register_script(script("collect"))
        self._store = self.client.register_script(script("store"))

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Return those digests whose parts are not stored yet."""
        with reaching_the_log():
            pipe = self.client.pipeline(transaction=False)
            for digest in digests:
                pipe.exists(self.keys.part(digest))
            return [d for d, there in zip(digests, pipe.execute(), strict=True) if not there]

    def store(self, parts: Mapping[str, bytes]) -> None:
        """Store parts under their digests; storing one twice is harmless."""
        with reaching_the_log():
            for digest, content in parts.items():
                self._store(keys=[self.keys.part(digest)], args=[content])

    def publish(self, manifest: Manifest, dead: Sequence[DeadLetter]) -> None:
        """
        Make `manifest` the head; repeating the current head is harmless.

        Raises:
            Diverged: the head is this version with other bytes, or does not end in its parent.
            OtherLog, Fenced, BusError: this learner must stop.
        """
        line = json.dumps(
            {
                "learned_through": manifest.learned_through,
                "samples": manifest.samples,
                "classes": manifest.classes,
                "parent": manifest.parent,
                "adapter": manifest.parts.get("adapter", ""),
                "digest": manifest.digest,
                "gate": manifest.gate,
                "restored_from": manifest.restored_from,
            }
        )
        named = frozenset(manifest.parts.values())
        there = self._named.get(manifest.version - 1) if manifest.parent == self._head else None
        part_keys = [self.keys.part(digest) for digest in sorted(named - (there or frozenset()))]
        letters = [field for letter in dead for field in (str(letter.seq), letter.reason)]
        with reaching_the_log():
            answer = self._publish(
                keys=[
                    self.keys.meta,
                    self.keys.head,
                    self.keys.manifest(manifest.version),
                    self.keys.lineage,
                    self.keys.learned,
                    self.keys.dead,
                    self.keys.manifests,
                ],
                args=[
                    self.stream.epoch,
                    self.stream.fence,
                    manifest.version,
                    manifest.digest,
                    manifest.parent,
                    manifest.encode(),
                    manifest.learned_through,
                    line,
                    LINEAGE_MAX,
                    len(part_keys),
                    *part_keys,
                    *letters,
                ],
            )
        if text(answer[0]) in {"DIVERGED", "PARENT", "OLD"}:
            raise Diverged(
                f"version {manifest.version} does not continue the head ({text(answer[0])} "
                f"{text(answer[1])[:12]}): the state is not the one that published it; "
                "restore the state that belongs to this log"
            )
        raise_for(answer)
        self._named[manifest.version] = named
        # The script looks at no part of a head that it finds.
        self._head = manifest.digest if text(answer[1]) == "new" else ""

    def check_again(self, manifest: Manifest) -> None:
        """
        Return when a version behind the head was made again to the same bits.

        Raises:
            Diverged: it was published with other ones.
        """
        with reaching_the_log():
            row = self.client.hget(self.keys.lineage, str(manifest.version))
        if row is None and manifest.version <= self.head()[0] - LINEAGE_MAX:
            return  # longer ago than the lineage remembers
        published = "" if row is None else json.loads(text(row).partition(" ")[2])["digest"]
        if published != manifest.digest:
            raise Diverged(
                f"version {manifest.version} was published with other bits "
                f"({published[:12] or 'none'}, now {manifest.digest[:12]}): another CPU or torch learns the log again, or another "
                "state; restore it, or go on from this one with `everlens reconcile`"
            )

    def collect(self, newest: int) -> None:
        """Delete all but the last `VERSIONS_KEPT` manifests and the pinned one, and their parts."""
        keys = self.keys
        with reaching_the_log():
            pipe = self.client.pipeline(transaction=False)
            pipe.zrange(keys.manifests, 0, -1)
            pipe.hget(keys.meta, "pin")
            stored, pin = pipe.execute()
            versions = [int(version) for version in stored]
            pinned, _ = _parse_head(pin or None)
            gone = [v for v in versions if v <= newest - VERSIONS_KEPT and v != pinned]
            if not gone:
                return
            unread = [version for version in versions if version not in self._named]
            manifests = self.client.mget([keys.manifest(v) for v in unread]) if unread else []
        self._named |= {
            version: _part_digests(manifest)
            for version, manifest in zip(unread, manifests, strict=True)
        }
        unnamed = frozenset[str]().union(*(self._named[version] for version in gone))
        for version in versions:
            if version not in gone:
                unnamed -= self._named[version]
        with reaching_the_log():
            raise_for(
                self._collect(
                    keys=[
                        keys.meta,
                        keys.manifests,
                        *(keys.manifest(version) for version in gone),
                        *(keys.part(digest) for digest in sorted(unnamed)),
                    ],
                    args=[self.stream.epoch, self.stream.fence, text(pin or b""), *gone],
                )
            )
        self._named = {v: self._named[v] for v in versions if v not in gone}

    def head(self) -> tuple[int, str]:
        """Return version and digest of the head; (0, "") before the first publication."""
        with reaching_the_log():
            return _parse_head(self.client.get(self.keys.head))


class Follower:
    """
    The service's half: waits for a new head, fetches manifests and parts, checks digests.

    Args:
        client, keys: where the log is.
        epoch: of the log that was served from before this start; empty where that is not known.
    """

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, epoch: str = "") -> None:
        self.client = client
        self.keys = keys
        self.epoch = epoch

    async def head(self) -> tuple[int, str]:
        """
        Return version and digest to serve: the pinned, or the head; (0, "") before the first.

        Raises:
            PartError: it is not a head.
            OtherLog: the log was wiped or exchanged since it was looked at first.
        """
        pin = await self._pin_of_this_log()
        return _parse_head(pin or await self._read(self.keys.head, _HEAD_BYTES_MAX))

    async def pinned(self) -> int | None:
        """Return the version that is served in place of the head, if one is."""
        pin = await self._pin_of_this_log()
        return _parse_head(pin)[0] if pin else None

    async def _pin_of_this_log(self) -> str:
        with reaching_the_log():
            fields = await self.client.hmget(self.keys.meta, ["epoch", "former", "pin"])
        epoch, former, pin = (text(field or b"") for field in fields)
        if self.epoch and epoch != self.epoch and self.epoch not in former.split():
            raise OtherLog(
                "the log is another one than the one that was served from; restore it, or give "
                "what was lost up with `everlens reconcile`"
            )
        self.epoch = epoch
        return pin

    async def pin(self, version: int, digest: str) -> bool:
        """Let every service serve a version within a second; return False where it is not kept."""
        with reaching_the_log():
            await self.client.hset(self.keys.meta, "pin", f"{version} {digest}")
            # The learner does not collect what it sees pinned; it may have, just before.
            if await self.client.strlen(self.keys.manifest(version)):
                return True
        await self.unpin()
        return False

    async def unpin(self) -> None:
        """Let every service serve the head again."""
        if await self.pinned() is not None:
            with reaching_the_log():
                await self.client.hset(self.keys.meta, "pin", "")

    async def heads(self, poll_s: float = 1.0) -> AsyncGenerator[tuple[int, str], None]:
        """
        Yield the head again and again: at every hint, and at least every `poll_s`.

        Raises:
            PartError: it is not a head; begin again later.
        """
        while True:
            async with self.client.pubsub(ignore_subscribe_messages=True) as hints:
                with contextlib.suppress(LogUnavailable):
                    with reaching_the_log():
                        await hints.subscribe(self.keys.head)
                    while True:
                        yield await self.head()
                        with reaching_the_log():
                            await hints.get_message(timeout=poll_s)
            await asyncio.sleep(poll_s)

    async def manifest(self, version: int, digest: str) -> Manifest:
        """
        Return the manifest of a version.

        Raises:
            PartError: missing, damaged, or of another version than its key says.
        """
        content = await self._read(self.keys.manifest(version), MANIFEST_BYTES_MAX)
        if content is None:
            raise PartError(f"the manifest of version {version} is no longer stored")
        manifest = decode_manifest(content, digest)
        if manifest.version != version:
            raise PartError(f"the manifest under {version} says it is version {manifest.version}")
        return manifest

    async def part(self, digest: str) -> bytes:
        """
        Return the bytes of one part.

        Raises:
            PartError: missing, too large or damaged.
        """
        return check_part(await self._read(self.keys.part(digest), PART_BYTES_MAX), digest)

    async def _read(self, key: str, bytes_max: int) -> bytes | None:
        """
        Return what a key holds, None where that is nothing.

        Its length is asked first: what is too long never gets here. Whether the ranges belong to
        one writing is for its digest to say.

        Raises:
            PartError: it holds more bytes, or no bytes at all but a list or a hash.
        """
        with reaching_the_log():
            try:
                size = await self.client.strlen(key)
                if size > bytes_max:
                    raise PartError(f"{key} has {size} bytes, at most {bytes_max} are read")
                content = bytearray()
                for start in range(0, size, _RANGE_BYTES):
                    end = min(start + _RANGE_BYTES, size)
                    piece = await self.client.getrange(key, start, end - 1)
                    assert isinstance(piece, bytes)  # connections do not decode
                    if not piece:
                        return None  # deleted meanwhile
                    content += piece
            except redis.exceptions.NoPermissionError:
                raise
            except redis.ResponseError as error:
                if is_passing(error):
                    raise
                raise PartError(f"{key} cannot be read: {error}") from error
        return bytes(content) or None

    async def lineage(self, most: int = LINEAGE_MAX) -> list[dict[str, Any]]:
        """Return one record for each remembered version, of so many at most, the newest first."""
        with reaching_the_log():
            rows = await self.client.hgetall(self.keys.lineage)
        # Read are those that are asked for: ten thousand would hold up everybody for 50 ms.
        newest = sorted(map(int, rows), reverse=True)[:most]
        return [_record(version, rows[b"%d" % version]) for version in newest]

    async def record(self, version: int) -> dict[str, Any] | None:
        """Return what is remembered of one version."""
        with reaching_the_log():
            row = await self.client.hget(self.keys.lineage, str(version))
        return None if row is None else _record(version, row)


def _record(version: int, row: bytes | str) -> dict[str, Any]:
    published_at, _, line = text(row).partition(" ")
    return {"version": version, "published_at": int(published_at), **json.loads(line)}


def _parse_head(head: bytes | str | None) -> tuple[int, str]:
    if head is None:
        return 0, ""
    found = _HEAD.fullmatch(head.decode("latin-1") if isinstance(head, bytes) else head)
    if found is None:
        raise PartError(f"the head is {head[:80]!r}, not a version and its digest")
    return int(found[1]), found[2]


def _part_digests(manifest: bytes | str | None) -> frozenset[str]:
    if not manifest:
        return frozenset()
    try:
        return frozenset(json.loads(manifest)["parts"].values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PartError(f"a stored manifest is not one of ours: {error!r}") from error
