"""
A copy of everything that must survive, made while it is used; it is a data directory itself. ⑥

The order is the promise: what was acknowledged first (the witness), then what was learnt (the state),
then the log. So the log holds all that either of them knows, and whatever was acknowledged before
the copy began is in it; what the state lacks is learnt from it again, to the same bits.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import everlens
from everlens.bus.connect import connect
from everlens.bus.files import copy_log
from everlens.bus.keys import Keys
from everlens.bus.server import EmbeddedServer
from everlens.bus.stream import LogState, Stream
from everlens.bus.versions import Publisher
from everlens.errors import StateError
from worker.commit import StateFile

FILE = "backup.json"
_MEMORY_BYTES = 64 << 30  # of the server that reads the copy: as much as it holds


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds."""

    directory: Path
    admitted: int  # the last sample in it
    learned_through: int  # by the state; the log has the rest
    version: int  # the head


@dataclass(frozen=True, slots=True)
class Places:
    """
    Where everything is.

    Args:
        data_dir: of the learner: its state.
        serving_dir: of the service: what was acknowledged, and the API keys.
        log_dir: of the log's server; its files are read, and it is asked nothing.
        namespace: of the log.
        binary: of the server that reads the copied log; empty finds one.
    """

    data_dir: Path
    serving_dir: Path
    log_dir: Path
    namespace: str
    binary: str = ""


def back_up(places: Places, target: Path) -> Backup:
    """
    Copy everything to `target`, read the copy back, and return what it holds.

    Args:
        places: of what is copied, in use or not.
        target: a directory that is not there yet; it is there when everything is in it.

    Raises:
        StateError: the target is there, there is nothing to copy, or the copies do not fit.
        ServerError: the log cannot be copied, or a server does not load its copy.
    """
    if target.exists():
        raise StateError(f"{target} is there already; give a directory of its own")
    state = places.data_dir / "state" / "learner.db"
    if not state.exists():
        raise StateError(f"there is no {state}; EVERLENS_DATA_DIR has to be that of a learner")
    began = time.time()
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    _copy_witnesses(places.serving_dir, unfinished)
    progress = _copy_state(state, unfinished / "state" / "learner.db")
    copy_log(places.log_dir, unfinished / "redis")
    found, head = _read_back(unfinished / "redis", places)
    _check_fit(progress, found)
    about = {
        "everlens": everlens.__version__,
        "began_at": round(began, 3),
        "namespace": places.namespace,
        "epoch": found.epoch,
        "admitted": found.seq,
        "learned_through": progress["cursor"],
        "version": head,
    }
    (unfinished / FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    _sync_folders(unfinished)
    unfinished.rename(target)
    _sync(target.parent)
    return Backup(target, found.seq, progress["cursor"], head)


def _copy_witnesses(serving_dir: Path, target: Path) -> None:
    """Copy what was acknowledged, and who may ask; their owner alone may read them."""
    small = [*(serving_dir / "service").glob("*.acknowledged"), serving_dir / "keys.json"]
    for source in filter(Path.exists, small):
        copy = target / source.relative_to(serving_dir)
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(source, copy)
        _sync(copy)


def _copy_state(source: Path, target: Path) -> dict[str, Any]:
    """Copy the state as it is committed now, verify every row, and return its progress."""
    target.parent.mkdir(mode=0o700)
    live = sqlite3.connect(f"file:{source}?mode=rw", uri=True)
    try:
        live.execute("VACUUM INTO ?", (str(target),))
    finally:
        live.close()
    copied = StateFile(target)
    try:
        copied.verify_all()
        record = copied.record()
        copied.db.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
    finally:
        copied.close()
    if record is None:
        raise StateError(f"{source} holds nothing yet; start everlens once before it is backed up")
    _sync(target)
    progress: dict[str, Any] = record["progress"]
    return progress


def _read_back(directory: Path, places: Places) -> tuple[LogState, int]:
    """Return where the copied log is, and its head, as a server says that has loaded it."""
    with tempfile.TemporaryDirectory() as room:  # a socket's path is short
        server = EmbeddedServer(
            directory,
            binary=places.binary,
            maxmemory_bytes=_MEMORY_BYTES,
            socket=Path(room) / "redis.sock",
        )
        try:
            server.start()
            client = connect(server.url)
            stream = Stream(client, Keys(places.namespace))
            found = stream.state()
            if found is None:
                raise StateError(f"the copied log has no namespace {places.namespace}")
            version, _ = Publisher(stream).head()
            client.close()
            return found, version
        finally:
            server.stop()
            for left in ("server.conf", "server.log", "LOCK"):
                (directory / left).unlink(missing_ok=True)


def _check_fit(progress: dict[str, Any], log: LogState) -> None:
    """Return when a learner would go on from these two."""
    cursor = progress["cursor"]
    if log.epoch != progress["epoch"]:
        raise StateError("the log is another one than the state was learnt from")
    if log.seq < cursor:
        raise StateError(f"the log ends at entry {log.seq}, behind the state's {cursor}")
    if log.kept > cursor:
        raise StateError(
            f"the log was freed up to entry {log.kept} while it was copied, the state's copy ends "
            f"at {cursor}; back up again"
        )


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
