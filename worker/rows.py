"""
Rows with digests in one SQLite file, so that damage on the disk is noticed. ⑥

SQLite keeps no page checksums: of sixty places of a state file that were overwritten, thirty-five
went unnoticed. So each row carries the digest of what it holds, and each table a tally, the sum of
its rows' digests: a row that changed, vanished or came back is found by reading the table once.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from everlens.errors import DamagedState

# Of a row: None, text, a whole number or bytes.
Value = str | int | bytes | None

_MODULUS = 1 << 256


def row_digest(row: Sequence[Value]) -> bytes:
    """
    Return the SHA-256 of a row; each value with its kind and length, so that none runs into the next.

    Of bytes it is that of their CRC-32: they are megabytes a batch, and what is looked for is damage.
    """
    digest = hashlib.sha256()
    for value in row:
        if isinstance(value, bytes):
            length, told = len(value), b"%08x" % zlib.crc32(value)
        else:
            told = str(value).encode()
            length = len(told)
        digest.update(f"{type(value).__name__} {length} ".encode() + told)
    return digest.digest()


class Rows:
    """Tables of one file; the first column of each is its key, the last one the row's digest."""

    def __init__(self, path: Path, schema: str, tables: Sequence[str]) -> None:
        """
        Open the file, and make its tables where there are none.

        Raises:
            DamagedState: it is not a database, or a damaged one.
        """
        self.path = path
        self.tables = tables
        self.tally = dict.fromkeys(tables, 0)  # as of this process's last write
        self.db = sqlite3.connect(path, isolation_level=None)
        try:
            self.db.execute("PRAGMA page_size=65536")  # rows are large: half the time of 4 kB
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
            # What is deleted is overwritten: a forgotten picture does not lie on in a free page. Some
            # builds of SQLite do so unasked, others never.
            self.db.execute("PRAGMA secure_delete=ON")
            self.db.executescript(schema)
        except sqlite3.DatabaseError as error:
            self.db.close()
            raise DamagedState(f"{path} is damaged ({error})") from error

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. An exception inside rolls back; the caller must end the process."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def insert(self, table: str, rows: Iterable[Sequence[Value]]) -> None:
        """Add rows with keys that the table does not hold."""
        for row in rows:
            digest = row_digest(row)
            marks = ", ".join("?" * (len(row) + 1))
            self.db.execute(f"INSERT INTO {table} VALUES ({marks})", (*row, digest))  # noqa: S608 - our own words
            self._count(table, int.from_bytes(digest))

    def replace(self, table: str, rows: Sequence[Sequence[Value]]) -> None:
        """Add rows, each in place of the one with its key."""
        self.delete(table, [row[0] for row in rows])
        self.insert(table, rows)

    def delete(self, table: str, keys: Iterable[Value]) -> None:
        """Take rows out; a key that the table does not hold changes nothing."""
        key = self._key(table)
        for value in keys:
            found = self.db.execute(
                f"DELETE FROM {table} WHERE {key} = ? RETURNING digest",  # noqa: S608 - our own words
                (value,),
            ).fetchone()
            if found is not None:
                self._count(table, -int.from_bytes(found[0]))

    def clear(self, table: str) -> None:
        """Take all rows of a table out."""
        self.db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own words
        self.tally[table] = 0

    def verify(self, tally: dict[str, int]) -> None:
        """
        Read every row, and go on from this tally.

        Raises:
            DamagedState: a row is not what was written, is missing, or is there again.
        """
        for table in self.tables:
            found = 0
            for *row, digest in self.db.execute(f"SELECT * FROM {table}"):  # noqa: S608 - our own words
                if row_digest(row) != digest:
                    raise DamagedState(f"{self.path} is damaged: a row of {table} ({row[0]})")
                found = (found + int.from_bytes(digest)) % _MODULUS
            if found != tally.get(table, 0):
                raise DamagedState(f"{self.path} is damaged: rows of {table} are missing or old")
            self.tally[table] = found

    def _count(self, table: str, amount: int) -> None:
        self.tally[table] = (self.tally[table] + amount) % _MODULUS

    def _key(self, table: str) -> Any:
        return self.db.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchone()[0]
