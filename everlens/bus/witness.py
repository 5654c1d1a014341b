"""
A witness beside the log: the last number that was acknowledged, in a file of our own. ②

A server that lost the end of its log (a torn file, an older copy, a missing manifest) starts
without a murmur and would number other samples anew. The file is written before the answer goes
out, without a sync: it outlives a kill of any process, which is all that it must.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The highest number that was answered for, and the epoch of the log that gave it."""

    epoch: str = ""
    seq: int = 0


class Witness:
    """The file; processes of one host may share it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self) -> Acknowledged:
        """Return what was acknowledged; nothing yet when the file is new."""
        words = os.pread(self._file, 256, 0).decode("ascii", "replace").split()
        if len(words) != 2 or not words[1].isdecimal():
            return Acknowledged()
        return Acknowledged(words[0], int(words[1]))

    def note(self, epoch: str, seq: int) -> None:
        """Remember that `seq` is about to be acknowledged; a lower number changes nothing."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            before = self.read()
            if before.epoch != epoch or before.seq < seq:
                # One write of one length: no reader sees half of it.
                os.pwrite(self._file, f"{epoch} {seq:020d}\n".encode(), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
