"""Rows with digests: whatever happens to them behind our back is found."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from everlens.errors import DamagedState
from worker.rows import Rows, row_digest

SCHEMA = """
CREATE TABLE IF NOT EXISTS birds (key INTEGER PRIMARY KEY, name TEXT, picture BLOB, digest BLOB);
CREATE TABLE IF NOT EXISTS words (key TEXT PRIMARY KEY, meaning TEXT, digest BLOB);
"""


def opened(path: Path) -> Rows:
    return Rows(path, SCHEMA, ("birds", "words"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.db"


@pytest.fixture
def rows(path: Path) -> Iterator[Rows]:
    made = opened(path)
    with made.transaction():
        made.insert("birds", [(k, f"bird {k}", bytes([k]) * 2000) for k in range(60)])
        made.insert("words", [("beak", None), ("wing", "ala")])
    yield made
    made.close()


def test_what_was_written_is_verified(rows: Rows, path: Path) -> None:
    """A file that nobody touched is whole, also after rows went and changed."""
    with rows.transaction():
        rows.delete("birds", [3, 4, 777])
        rows.replace("words", [("wing", "aile"), ("tail", "")])
    again = opened(path)
    again.verify(rows.tally)
    assert again.tally == rows.tally
    again.close()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_damaged_file_is_let_go(rows: Rows, path: Path) -> None:
    """A connection left to it would share its index with that of the next file of this name."""
    rows.close()
    path.write_bytes(b"no database".ljust(65536))
    with pytest.raises(DamagedState) as caught:
        opened(path)
    held = {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
    assert str(path) not in held
    assert "not a database" in str(caught.value)


def test_nothing_of_a_deleted_row_lies_on_in_the_file(rows: Rows, path: Path) -> None:
    """Its bytes are overwritten, and the others stay; nobody asks how SQLite was built."""
    assert rows.db.execute("PRAGMA secure_delete").fetchone() == (1,)
    with rows.transaction():
        rows.delete("birds", [7])
    rows.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    assert b"bird 8" in content
    assert b"bird 7" not in content
    assert bytes([7]) * 100 not in content


def test_emptied_table_counts_nothing(rows: Rows) -> None:
    """A cleared table has the tally of one that never held a row."""
    rows.clear("birds")
    rows.verify({"words": rows.tally["words"]})


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE birds SET name = 'other' WHERE key = 5",
        "UPDATE birds SET picture = zeroblob(2000) WHERE key = 5",
        "UPDATE birds SET key = 500 WHERE key = 5",
        "UPDATE birds SET digest = zeroblob(32) WHERE key = 5",
        "UPDATE words SET meaning = '' WHERE key = 'beak'",
        "DELETE FROM birds WHERE key = 5",
        "DELETE FROM words",
        "INSERT INTO birds SELECT 500, name, picture, digest FROM birds WHERE key = 5",
    ],
)
def test_row_that_changed_is_found(rows: Rows, damage: str) -> None:
    """A value, a key, a digest, a missing row, one too many."""
    rows.db.execute(damage)
    with pytest.raises(DamagedState, match="damaged"):
        rows.verify(dict(rows.tally))


def test_row_that_came_back_is_found(rows: Rows) -> None:
    """An older row under its own right digest is not the one that was written last."""
    old = rows.db.execute("SELECT * FROM words WHERE key = 'wing'").fetchone()
    rows.replace("words", [("wing", "aile")])
    rows.db.execute("INSERT OR REPLACE INTO words VALUES (?, ?, ?)", old)
    with pytest.raises(DamagedState, match="missing or old"):
        rows.verify(dict(rows.tally))


def test_values_do_not_run_into_each_other() -> None:
    """Neither the border between two values nor their kind is lost in the digest."""
    different: list[tuple[str | int | bytes | None, ...]] = [
        ("ab", "c"),
        ("a", "bc"),
        (b"ab", "c"),
        ("ab", None),
        ("ab", "None"),
        (1, "c"),
    ]
    assert len({row_digest(row) for row in different}) == len(different)


def test_random_damage_of_the_file_is_found(path: Path, rows: Rows) -> None:
    """64 random bytes at any place are found, or lie where nothing is kept."""
    tally, expected = dict(rows.tally), list(rows.db.execute("SELECT * FROM birds ORDER BY key"))
    rows.close()
    whole = path.read_bytes()
    drawn, found = random.Random(0), 0
    for _ in range(60):
        place = drawn.randrange(len(whole) - 64)
        path.write_bytes(whole[:place] + drawn.randbytes(64) + whole[place + 64 :])
        for beside in ("-wal", "-shm"):
            path.with_name(path.name + beside).unlink(missing_ok=True)
        damaged = None
        try:
            damaged = opened(path)
            damaged.verify(tally)
            assert expected == list(damaged.db.execute("SELECT * FROM birds ORDER BY key"))
        except (DamagedState, sqlite3.DatabaseError, UnicodeDecodeError):
            found += 1
        finally:
            if damaged is not None:
                damaged.close()
    assert found >= 10
