"""
Follow the head: fetch, verify, build and warm the next version aside, then swap it in. ⑧

Whatever fails leaves the version that serves where it is. A version that failed three times is
remembered as bad and tried ever more seldom, until the head names another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from everlens.artifact import Manifest
from everlens.bus.versions import Follower
from everlens.errors import LogUnavailable, OtherLog, PartError
from everlens.model.parts import build_snapshot, changed_parts, check_manifest
from everlens.model.snapshot import Snapshot
from service.cache import VersionCache
from service.metrics import Metrics
from service.probe import Probe
from service.serving import Serving

TRIES = 3
AGAIN_S = 60.0  # a version is bad for ever or for want of memory: nobody can tell
_DOUBLED_MAX = 6
_HEAD = "head"  # stands among the refused in place of the digest that it does not name
_REFUSED_KEPT = 16
_REASON_CHARACTERS_MAX = 500

Made = TypeVar("Made")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RefusedVersion:
    """A published version that this service could not use; without a number if the head has none."""

    version: int | None
    reason: str
    tries: int = 1


class HotSwap:
    """Keeps the serving snapshot at the head; sets `settled` once the first head was looked at."""

    def __init__(
        self,
        follower: Follower,
        serving: Serving,
        metrics: Metrics,
        builder: Executor,
        settled: asyncio.Event,
        cache: VersionCache,
    ) -> None:
        self.follower = follower
        self.serving = serving
        self.metrics = metrics
        self.builder = builder
        self.settled = settled
        self.cache = cache
        self.probe = Probe(serving.base.backbone)
        self.stale = False  # the answers are the cache's: the log was not reached since the start
        self.refused: dict[str, RefusedVersion] = {}
        self._again_at: dict[str, float] = {}  # of those that failed three times
        self._unfetched = ""  # the digest of the version of which that was said
        self._at_hand: dict[str, bytes] = {}  # digest → part: kept here, or fetched in vain before

    async def follow(self, poll_s: float = 1.0) -> None:
        """Swap in every new head, for ever; the log may go and come back meanwhile."""
        while not self.settled.is_set():
            await self._begin()
            await asyncio.sleep(0.0 if self.settled.is_set() else poll_s)
        while True:
            try:
                async with contextlib.aclosing(self.follower.heads(poll_s)) as heads:
                    async for version, digest in heads:
                        self._forget(_HEAD)  # it can be read again
                        try:
                            await self._look(version, digest)
                            self.stale = False
                        except LogUnavailable as error:
                            self._not_fetched(version, digest, error)
            except (PartError, OtherLog) as error:  # of the head itself
                self._refuse(None, _HEAD, str(error))
                self.settled.set()
            await asyncio.sleep(poll_s)

    def _not_fetched(self, version: int, digest: str, error: LogUnavailable) -> None:
        """Say once of each version that it could not be fetched yet."""
        if digest != self._unfetched:
            log.warning("version %d is not fetched yet: %s; trying again", version, error)
        self._unfetched = digest

    async def _begin(self) -> None:
        """Answer with the head; where the log is away, or another one, with the version kept here."""
        try:
            kept = await self._build(self.cache.load)
        except (OSError, PartError) as error:
            log.warning("the version kept here is not used: %s", error)
            kept = None
        self._at_hand = dict(kept[1]) if kept else {}
        try:
            await self._look(*await self.follower.head())
            self._at_hand = {}  # also where nothing was fetched: it may be a hundred megabytes
            return
        except (LogUnavailable, OtherLog) as error:
            log.warning("%s; answering with what is kept here until it does", error)
        except PartError as error:  # of the head itself
            self._refuse(None, _HEAD, str(error))
            self.settled.set()
            return
        if kept:
            try:
                await self._take(*kept)
                self.stale = True
                self._at_hand = {d: p for d, p in self._at_hand.items() if d not in kept[1]}
            except PartError as error:
                log.warning("the version kept here is not used: %s", error)
        self.settled.set()

    async def _look(self, version: int, digest: str) -> None:
        if version == 0 or digest == self.serving.current.digest or self._is_bad(digest):
            self.settled.set()
            return
        try:
            await self._swap(version, digest)
        except PartError as error:
            if await self.follower.head() != (version, digest):
                return  # the head moved on and the parts were collected: the new one comes next
            self._refuse(version, digest, str(error))
            if not self._is_bad(digest):
                return
        self.settled.set()

    async def _swap(self, version: int, digest: str) -> None:
        started = time.monotonic()
        previous = self.serving.current
        manifest = await self.follower.manifest(version, digest)
        check_manifest(previous.backbone, manifest)  # before anything is fetched for it
        names = changed_parts(manifest, previous)
        parts = await self._fetch({manifest.parts[name] for name in names})
        await self._take(manifest, parts)
        self._forget(digest)
        self.metrics.swap_seconds.observe(time.monotonic() - started)
        await self._keep(manifest, parts)

    async def _fetch(self, digests: set[str]) -> dict[str, bytes]:
        """Return parts by their digests; what came before the log went away comes no second time."""
        parts = self._at_hand = {d: self._at_hand[d] for d in digests & self._at_hand.keys()}
        for digest in sorted(digests - parts.keys()):
            parts[digest] = await self.follower.part(digest)
        self._at_hand = {}
        return parts

    async def _keep(self, manifest: Manifest, parts: Mapping[str, bytes]) -> None:
        """Keep the version that answers on this machine, for a start while the log is away."""
        try:
            lacking = await self._build(partial(self.cache.keep, manifest, parts))
            if lacking:
                fetched = {digest: await self.follower.part(digest) for digest in lacking}
                await self._build(partial(self.cache.keep, manifest, {**parts, **fetched}))
        except (OSError, PartError, LogUnavailable) as error:
            log.warning("version %d is not kept on this machine: %s", manifest.version, error)

    async def _take(self, manifest: Manifest, parts: Mapping[str, bytes]) -> None:
        """Make a version aside and swap it in."""
        snapshot = await self._build(partial(self._made, manifest, parts))
        self.serving.swap(snapshot)
        self.metrics.version.set(snapshot.version)
        self.metrics.learned_through.set(snapshot.learned_through)
        log.debug("version %d answers", snapshot.version)

    def _made(self, manifest: Manifest, parts: Mapping[str, bytes]) -> Snapshot:
        """Build a version and let it answer once."""
        previous = self.serving.current
        snapshot = build_snapshot(previous.backbone, manifest, parts, previous)
        self.probe.ask(snapshot)
        return snapshot

    async def _build(self, work: Callable[[], Made]) -> Made:
        """Run work beside the event loop, one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self.builder, work)

    def _is_bad(self, digest: str) -> bool:
        return time.monotonic() < self._again_at.get(digest, 0.0)

    def _refuse(self, version: int | None, digest: str, reason: str) -> None:
        reason = _printable(reason)
        if digest in self.refused:
            self._refuse_again(digest)
            return
        self.metrics.refused_versions.inc()
        log.error(
            "%s is refused, version %d goes on answering: %s",
            "the head" if version is None else f"version {version}",
            self.serving.current.version,
            reason,
        )
        self.refused[digest] = RefusedVersion(version, reason)
        while len(self.refused) > _REFUSED_KEPT:
            self._forget(next(iter(self.refused)))

    def _refuse_again(self, digest: str) -> None:
        """Count another try; from the third on the next one waits, each time twice as long."""
        refused = self.refused[digest]
        refused.tries += 1
        if refused.tries <= TRIES:  # later ones say nothing new to whoever counts them
            self.metrics.refused_versions.inc()
        if refused.tries >= TRIES:
            doubled = min(refused.tries - TRIES, _DOUBLED_MAX)
            self._again_at[digest] = time.monotonic() + AGAIN_S * 2**doubled

    def _forget(self, digest: str) -> None:
        """Hold nothing against a version any more."""
        self.refused.pop(digest, None)
        self._again_at.pop(digest, None)


def _printable(reason: str) -> str:
    """Return a reason as people may be shown it: it can quote what a stranger wrote."""
    shown = (c if c.isprintable() else ascii(c)[1:-1] for c in reason[:_REASON_CHARACTERS_MAX])
    return "".join(shown)
