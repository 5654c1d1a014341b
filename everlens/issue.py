"""`everlens keys`: give out API keys, list them, take them back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from everlens.keys import DEFAULT_SCOPES, ApiKey, Scope, add_key, read_ring, revoke_key


def add(
    path: Path,
    name: str,
    *,
    scopes: Sequence[Scope],
    expires_days: int | None,
    rate_per_s: float | None,
    say: Console,
) -> int:
    """
    Make a key and print its token, alone on standard output; return the exit code.

    Raises:
        KeysError: one sentence says why it cannot.
    """
    now = datetime.now(UTC)
    first = not read_ring(path)
    key, token = add_key(
        path,
        name,
        scopes=scopes or DEFAULT_SCOPES,
        now=now,
        expires_at=None if expires_days is None else now + timedelta(days=expires_days),
        rate_per_s=rate_per_s,
    )
    print(token)
    may = ", ".join(key.scopes)
    _say(say, f"key {key.id} ({key.name}) may {may}; its token is shown only now")
    if first:
        _say(say, f"from now on every request to the service with {path} needs a key")
    return 0


def show(path: Path, console: Console) -> int:
    """
    Print all keys; return the exit code.

    Raises:
        KeysError: the file cannot be read.
    """
    now = datetime.now(UTC)
    table = Table(box=None)
    for heading in ("id", "name", "scopes", "made", "expires", "rate/s", "state"):
        table.add_column(heading, overflow="fold")
    for key in read_ring(path):
        table.add_row(
            key.id,
            Text(key.name),  # as it is, also with brackets
            " ".join(key.scopes),
            _day(key.created_at),
            _day(key.expires_at),
            "" if key.rate_per_s is None else f"{key.rate_per_s:g}",
            _state(key, now),
        )
    if table.row_count:
        console.print(table)
    else:
        _say(console, f"no keys in {path}: whoever reaches the service may ask")
    return 0


def revoke(path: Path, key_id: str, say: Console) -> int:
    """
    Take a key back; return the exit code.

    Raises:
        KeysError: there is no such key.
    """
    key = revoke_key(path, key_id)
    _say(say, f"key {key.id} ({key.name}) is refused from the next second on")
    return 0


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d}"


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked:
        return "revoked"
    return "good" if key.good(now) else "expired"
