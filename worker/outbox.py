"""
The outbox: a version is committed with all that it was made from, then brought to the head. ⑥⑦

The state may be one version ahead of the head, never two. What is committed and not out yet is sent
until it is: to send it twice changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from everlens.artifact import Manifest, digest_of
from everlens.bus.stream import Stream
from everlens.bus.versions import Publisher
from everlens.model.parts import build_snapshot
from everlens.model.snapshot import Snapshot, base_snapshot
from worker.commit import Progress, StateFile
from worker.generations import Generations
from worker.learn.learner import Learner
from worker.publication import evidence_parts, is_made_once, next_manifest

log = logging.getLogger("everlens.worker")


class Outbox:
    """
    The version that is committed, and whether it is the head.

    Args:
        learner: what every commit is of.
        state: where it is committed.
        generations: the copies of the state, for which the log is kept.
        stream: the log.
        id_window: of how many samples the ids are remembered.
    """

    progress: Progress  # from the start on

    def __init__(
        self,
        learner: Learner,
        state: StateFile,
        generations: Generations,
        stream: Stream,
        *,
        id_window: int,
    ) -> None:
        self.learner = learner
        self.state = state
        self.generations = generations
        self.stream = stream
        self.id_window = id_window
        self.publisher = Publisher(stream)
        self.snapshot: Snapshot = base_snapshot(learner.backbone, learner.config.adapter.top_blocks)
        self.unpublished: tuple[Manifest, dict[str, bytes]] | None = None

    @contextmanager
    def commit(self) -> Iterator[StateFile]:
        """Commit what is written inside, with the learner and its progress as they are then."""
        with self.state.transaction():
            yield self.state
            self.state.save_progress(self.learner, self.progress)

    @contextmanager
    def version(self, manifest: Manifest, parts: dict[str, bytes]) -> Iterator[StateFile]:
        """
        Commit the next version with what is written inside; `send` brings it to the head then.

        The last version is the head: of two that are not, only the second could be made again.
        """
        assert self.unpublished is None
        self._advance(manifest)
        with self.commit() as state:
            yield state
            state.save_parts({n: p for n, p in parts.items() if is_made_once(n)})
        self._exchange(manifest, parts)

    def send(self) -> bool:
        """Publish and trim what is committed and not yet so; return whether anything was."""
        if self.unpublished is None:
            return False
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
            oldest = self.progress.cursor - self.id_window
            forgotten = [seq for seq in self.state.forgotten(version) if seq > oldest]
            self.stream.tell_forgotten(forgotten, version)
            self.stream.tell_reports(self.state.reports(version))
            self.publisher.publish(manifest, self.state.dead_letters(version))
            self.publisher.collect(manifest.version)
        self.stream.trim(self.progress.cursor, self.generations.kept, self.id_window)
        self.unpublished = None
        return True

    def resume(self, numerics: str) -> None:
        """
        Bring head and snapshot to the committed state.

        Args:
            numerics: what the bits depend on here.
        """
        progress = self.progress
        head_version, _ = self.publisher.head()
        parts = evidence_parts(self.learner, None)
        parts |= self.state.saved_parts(progress.parts)
        if progress.version == 0:
            return
        manifest = replace(
            next_manifest(
                self.learner,
                progress,
                parts,
                cursor=progress.cursor,
                gate=progress.gate,
                restored_from=progress.restored_from,
            ),
            version=progress.version,
            parent=progress.parent,
        )
        if manifest.digest != progress.digest:
            # The same sums give other bits here: another CPU, torch or setting. Serve what this
            # machine computes as a version of its own, so that head and state agree again.
            log.warning(
                "bits differ from version %d (made with %s, now %s); going on with a new version",
                progress.version,
                progress.numerics,
                numerics,
            )
            if head_version == progress.version:
                manifest = next_manifest(self.learner, progress, parts, cursor=progress.cursor)
            self._advance(manifest)
            with self.commit():
                progress.numerics = numerics
        # Also where it is the head already: its trim may be what was cut short.
        self._exchange(manifest, parts)

    def _advance(self, manifest: Manifest) -> None:
        progress = self.progress
        progress.parent = manifest.parent
        progress.version = manifest.version
        progress.digest = manifest.digest
        progress.gate = manifest.gate
        progress.restored_from = manifest.restored_from
        progress.parts = dict(manifest.parts)
        progress.cursor = manifest.learned_through

    def _exchange(self, manifest: Manifest, parts: dict[str, bytes]) -> None:
        contents = {digest_of(part): part for part in parts.values()}
        self.snapshot = build_snapshot(self.learner.backbone, manifest, contents, self.snapshot)
        self.unpublished = (manifest, contents)
