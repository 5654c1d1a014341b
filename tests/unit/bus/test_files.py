"""The log's files are copied whole while the server writes, and writes its log anew."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from everlens.bus.connect import connect
from everlens.bus.files import FOLDER, copy_log
from everlens.bus.server import EmbeddedServer
from everlens.errors import ServerError

MEMORY = 64 << 20


def numbers_in(directory: Path) -> list[int]:
    """Return what a server says that starts over a copy."""
    server = EmbeddedServer(directory, maxmemory_bytes=MEMORY)
    server.start()
    client = connect(server.url)
    rows: Any = client.xrange("log")
    found = [int(entry_id.split(b"-")[0]) for entry_id, _ in rows]
    client.close()
    server.stop()
    return found


def test_each_copy_has_all_that_was_acknowledged_before(tmp_path: Path) -> None:
    """
    While one client appends and another has the log written anew, four copies are made: each loads,
    has no hole, and ends behind what was acknowledged when it began.
    """
    server = EmbeddedServer(tmp_path / "live", maxmemory_bytes=MEMORY)
    server.start()
    acknowledged, stopping = [0], threading.Event()

    def manifest() -> Path:
        return next((tmp_path / "live" / FOLDER).glob("*.manifest"))

    def append() -> None:
        client = connect(server.url)
        while not stopping.is_set():
            number = acknowledged[0] + 1
            client.xadd("log", {"payload": b"x" * 2000}, id=f"{number}-0")
            acknowledged[0] = number
            if number % 50 == 0:
                with contextlib.suppress(redis.exceptions.ResponseError):  # one is under way
                    client.bgrewriteaof()
        client.close()

    writer = threading.Thread(target=append)
    writer.start()
    promised = []
    try:
        for place in range(4):
            while acknowledged[0] < 60 * (place + 1):
                assert writer.is_alive()
                stopping.wait(0.001)
            promised.append(acknowledged[0])
            copy_log(tmp_path / "live", tmp_path / f"copy-{place}")
        for _ in range(3000):  # the first rewriting may still be under way
            if "seq 1 type b" not in manifest().read_text():
                break
            stopping.wait(0.01)
    finally:
        stopping.set()
        writer.join()
        server.stop()

    assert "seq 1 type b" not in manifest().read_text(), (
        "the log was never written anew: nothing was tried"
    )
    for place, least in enumerate(promised):
        found = numbers_in(tmp_path / f"copy-{place}")
        assert found == list(range(1, len(found) + 1))
        assert least <= len(found) <= acknowledged[0] + 1


def test_a_copy_that_is_overtaken_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that changed while its files were copied counts as none."""
    folder = tmp_path / "live" / FOLDER
    folder.mkdir(parents=True)
    manifest = folder / "appendonly.aof.manifest"
    (folder / "one.aof").write_bytes(b"1")
    (folder / "two words.aof").write_bytes(b"22")
    manifest.write_text("file one.aof seq 1 type b\n")
    exchanged: list[bool] = []

    def copy_slowly(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        if source.name == "one.aof" and not exchanged:
            exchanged.append(True)
            manifest.write_text('file "two words.aof" seq 2 type b\nfile gone.aof seq 1 type h\n')
            (folder / "one.aof").unlink()

    monkeypatch.setattr("everlens.bus.files._copy_as_it_is", copy_slowly)
    waits: list[float] = []
    monkeypatch.setattr("everlens.bus.files.time.sleep", waits.append)
    copy_log(tmp_path / "live", tmp_path / "copy")

    copied = {path.name: path.read_bytes() for path in (tmp_path / "copy" / FOLDER).iterdir()}
    assert copied["two words.aof"] == b"22"
    assert copied[manifest.name] == b'file "two words.aof" seq 2 type b\n'
    assert set(copied) == {"two words.aof", manifest.name}
    assert len(waits) == 1
    with pytest.raises(ServerError, match="is there already"):
        copy_log(tmp_path / "live", tmp_path / "copy")


def test_a_manifest_that_is_being_written_is_none_yet(tmp_path: Path) -> None:
    """While the server writes its log anew the next manifest stands beside the one that holds."""
    folder = tmp_path / "live" / FOLDER
    folder.mkdir(parents=True)
    (folder / "one.aof").write_bytes(b"1")
    (folder / "appendonly.aof.manifest").write_text("file one.aof seq 1 type b\n")
    (folder / "temp-appendonly.aof.manifest").write_text("file two.aof seq 2 t")
    copy_log(tmp_path / "live", tmp_path / "copy")
    copied = {path.name for path in (tmp_path / "copy" / FOLDER).iterdir()}
    assert copied == {"one.aof", "appendonly.aof.manifest"}


def test_a_directory_without_a_log_is_told(tmp_path: Path) -> None:
    """The sentence says where the log's directory can be given."""
    with pytest.raises(ServerError, match="--log"):
        copy_log(tmp_path, tmp_path / "copy")
