"""The atomic steps: Lua files beside this one, sent by digest and re-sent after a restart."""

from __future__ import annotations

from functools import cache
from importlib import resources

from everlens.errors import BusError, Fenced, OtherLog


@cache
def script(name: str) -> str:
    """Return the text of `lua/<name>.lua`."""
    return (resources.files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def text(value: bytes | str | int) -> str:
    """Return one element of a script's answer as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def raise_for(answer: list[bytes]) -> None:
    """
    Return when a script answered OK.

    Raises:
        OtherLog: the log was wiped or exchanged under this process.
        Fenced: another learner holds the lease.
        BusError: any other refusal; callers that expect one look before they call this.
    """
    verdict, detail = text(answer[0]), text(answer[1])
    if verdict == "OK":
        return
    if verdict == "EPOCH":
        raise OtherLog(
            f"the log has epoch {detail or 'none'}, not the one this process was started for; "
            "restart it, and restore the log if it was lost"
        )
    if verdict == "FENCED":
        raise Fenced(f"another learner took over (fence {detail}); this one stops")
    raise BusError(f"the log answered {verdict} {detail}")
