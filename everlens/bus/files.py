"""
The files of the log on the server's disk, copied while it writes.

An append-only log is a base that no longer changes and increments of which only the last one grows,
named by a manifest that is exchanged when the server writes its log anew. So a copy is whole when
the manifest is the same afterwards; where the last increment is cut is the moment of the copy, and
what it cuts through was not acknowledged then.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path

from everlens.errors import ServerError

FOLDER = "appendonlydir"
_MANIFEST = "*.aof.manifest"
_UNFINISHED = "temp-"
_TRIES = 20
_AGAIN_S = 0.5
_BLOCK = 1 << 20


def copy_log(directory: Path, target: Path) -> None:
    """
    Copy the log of a server, running or not.

    Args:
        directory: of the server; `appendonlydir` lies in it.
        target: must not hold a log yet.

    Raises:
        ServerError: there is no log, or it was exchanged each time it was copied.
    """
    source, copy = directory / FOLDER, target / FOLDER
    if copy.exists():
        raise ServerError(f"{copy} is there already; give a directory of its own")
    for _ in range(_TRIES):
        manifest = _manifest(source)
        named = manifest.read_text(encoding="utf-8")
        copy.mkdir(mode=0o700, parents=True)
        try:
            for name in _files(named):
                _copy_as_it_is(source / name, copy / name)
            whole = manifest.read_text(encoding="utf-8") == named
        except FileNotFoundError:  # the server has written its log anew meanwhile
            whole = False
        if whole:
            (copy / manifest.name).write_text(_without_history(named), encoding="utf-8")
            _sync(copy / manifest.name)
            return
        shutil.rmtree(copy)
        time.sleep(_AGAIN_S)
    raise ServerError(f"the log in {source} changes its files all the time; try again later")


def _manifest(folder: Path) -> Path:
    found = sorted(folder.glob(_MANIFEST)) if folder.is_dir() else []
    # Beside it stands for a moment, or since the server was killed, the one that is to follow it.
    found = [path for path in found if not path.name.startswith(_UNFINISHED)]
    if len(found) != 1:
        raise ServerError(
            f"{folder} holds no log of a Redis or Valkey server; give the directory of the server "
            "that EVERLENS_REDIS_URL names with --log"
        )
    return found[0]


def _files(manifest: str) -> list[str]:
    """Return the files that a manifest names: `file NAME seq N type b|i|h`, quoted where needed."""
    lines = [line for line in _without_history(manifest).splitlines() if line.startswith("file ")]
    return [Path(shlex.split(line)[1]).name for line in lines]


def _without_history(manifest: str) -> str:
    """Leave out the files that the server is about to delete."""
    lines = [line for line in manifest.splitlines() if not line.endswith(" type h")]
    return "\n".join(lines) + "\n"


def _copy_as_it_is(source: Path, target: Path) -> None:
    """Copy what a file holds now, though it may grow, and put it on the disk."""
    with source.open("rb") as read, target.open("xb") as written:
        left = os.fstat(read.fileno()).st_size
        while left and (block := read.read(min(left, _BLOCK))):
            written.write(block)
            left -= len(block)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
