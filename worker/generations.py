"""
Copies of the state that a damaged one falls back to. ⑥

Two are kept, made every so many entries beside the learning and verified row by row before they
count. The log keeps every entry that the older one has not learnt, so that from either the learner
comes to the same bits again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from everlens.errors import DamagedState, StateError
from everlens.niceness import stand_back
from worker.commit import StateFile
from worker.rounds import NICENESS

log = logging.getLogger("everlens.worker")


class Generations:
    """The directory of a state: its lock, the live file, its copies; from `open` to `close`."""

    def __init__(self, path: Path) -> None:
        """
        Lock the directory of the live file.

        Raises:
            StateError: another learner uses it.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures lie in it
        self.path = path
        self.copies = (path.with_suffix(".1.db"), path.with_suffix(".2.db"))  # the newest first
        self._unfinished = path.with_suffix(".copying")
        self._lock = os.open(
            path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StateError(
                f"another learner uses {path}; stop it, or give this one another data directory"
            ) from None
        self._copier = ThreadPoolExecutor(
            1, thread_name_prefix="copy", initializer=partial(stand_back, NICENESS)
        )
        self._copying: Future[None] | None = None
        self.newest, self.kept = self._cursors()

    def close(self) -> None:
        """Wait for a copy that is being made, and give the lock back."""
        self._copier.shutdown()
        os.close(self._lock)

    def aside(self, work: Callable[[], object]) -> None:
        """In a forked child: do work without its share of the lock, which would outlive the learner."""
        os.close(self._lock)
        work()

    def open(self) -> StateFile:
        """
        Return the live state; where it is damaged, the newest whole copy in its place.

        Without one it is a new one: the log decides whether it can be learnt again from its first
        entry. What was damaged is left beside it.

        Raises:
            StateError: it was written by another everlens.
        """
        copies = [copy for copy in self.copies if copy.exists()]
        taken: Path | None = None
        if not self.path.exists() and copies:
            log.error("%s is gone", self.path)
            self._take(taken := copies.pop(0))
        while True:
            try:
                file = _verified(self.path)
                if file.cursor == 0 and copies:  # cut to nothing, which looks like a new file
                    file.close()
                    raise DamagedState(f"{self.path} is empty")
                return file
            except DamagedState as error:
                log.error("%s", error)  # noqa: TRY400 - the sentence says it all
                _set_aside(self.path)
                # A full or failing disk says nothing of the copy. A damaged one would make the next
                # copy push the whole one out.
                if taken is not None and not isinstance(error.__cause__, sqlite3.OperationalError):
                    _set_aside(taken)
                    self.newest, self.kept = self._cursors()
                taken = copies.pop(0) if copies else None
                if taken is not None:
                    self._take(taken)

    def forget(self) -> None:
        """Delete the copies: the log no longer has what they lack."""
        for copy in self.copies:
            copy.unlink(missing_ok=True)
        self.newest, self.kept = 0, 0

    def copy(self) -> None:
        """Begin to copy the live state as it is committed now, unless a copy is being made."""
        if self._copying is None:
            self._copying = self._copier.submit(self._copy)

    def tend(self) -> None:
        """
        Notice a copy that was finished; `kept` is the cursor of the older one then.

        Raises:
            DamagedState: the live file is damaged: a copy of it could not be verified.
        """
        if self._copying is None or not self._copying.done():
            return
        finished, self._copying = self._copying, None
        try:
            finished.result()
        except (OSError, sqlite3.OperationalError) as error:  # the disk is full: the next may do
            log.warning("no copy of the state was made: %s", error)
        self.newest, self.kept = self._cursors()

    def _copy(self) -> None:
        """Copy, verify, and only then put the copy in the place of the newest."""
        began = time.monotonic()
        self._unfinished.unlink(missing_ok=True)
        source = sqlite3.connect(self.path)
        try:
            source.execute("VACUUM INTO ?", (str(self._unfinished),))
        finally:
            source.close()
        copied = _verified(self._unfinished)
        cursor = copied.cursor
        copied.db.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        copied.close()
        _sync(self._unfinished)
        newest, older = self.copies
        if newest.exists():
            newest.replace(older)
        self._unfinished.replace(newest)
        _sync(self.path.parent)
        log.debug("copied the state at %d in %.2f s", cursor, time.monotonic() - began)

    def _cursors(self) -> tuple[int, int]:
        """
        Return the cursors of the newest and of the older copy.

        The second is 0 while there are not two: the log, from its first entry on, is the other.
        """
        newest, older = (_cursor_of(copy) if copy.exists() else 0 for copy in self.copies)
        return newest, min(newest, older)

    def _take(self, copy: Path) -> None:
        log.error("going on from %s, and learning the rest from the log again", copy)
        for leftover in (".db-wal", ".db-shm"):
            self.path.with_suffix(leftover).unlink(missing_ok=True)
        shutil.copyfile(copy, self._unfinished)
        _sync(self._unfinished)
        self._unfinished.replace(self.path)
        _sync(self.path.parent)


def _set_aside(path: Path) -> None:
    """Keep a damaged file for whoever wants to look at it, the last one alone."""
    if path.exists():
        path.replace(path.with_suffix(".damaged"))


def _cursor_of(copy: Path) -> int:
    """Return what a copy has learnt; 0 where it is damaged, as if there were none."""
    database = sqlite3.connect(f"file:{copy}?mode=ro", uri=True)
    try:
        record = database.execute("SELECT json_extract(record, '$.progress.cursor') FROM head")
        return int(record.fetchone()[0])
    except (sqlite3.DatabaseError, TypeError) as error:
        log.error("%s is damaged (%s)", copy, error)  # noqa: TRY400 - the sentence says it all
        return 0
    finally:
        database.close()


def _verified(path: Path) -> StateFile:
    file = StateFile(path)
    try:
        file.verify_all()
    except StateError:
        file.close()
        raise
    return file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
