"""Where tests keep files: in memory where it has room, by paths that a unix socket can lie below."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ROOM_BYTES = 4 << 30


def quick() -> Path:
    """
    Return memory where there is enough of it: what a kill loses is the same, and hundreds of
    databases need not be synced to a disk, milliseconds each. Servers and scripts run from there.
    """
    memory = Path("/dev/shm")
    if not memory.is_dir() or os.statvfs(memory).f_flag & os.ST_NOEXEC:
        return Path("/tmp")
    return memory if shutil.disk_usage(memory).free > _ROOM_BYTES else Path("/tmp")


@contextlib.contextmanager
def short_folder(name: str) -> Iterator[Path]:
    """Give a folder that is gone afterwards; no other process has its path in its words."""
    with tempfile.TemporaryDirectory(
        dir=quick(), prefix=f"everlens-{name}-", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
