"""What is looked at and steered: classes, versions, and how learning goes."""

from __future__ import annotations

import uuid
from urllib.parse import quote, urlencode

from everlens.client.refusals import ask
from everlens.client.results import (
    KnownClass,
    Labelling,
    Learning,
    Receipt,
    VersionRecord,
    read,
)
from everlens.client.steps import Plan, Reply, Request


def ready() -> Plan[bool]:
    """Return whether the service answers queries; False also where it cannot be reached."""
    reply: Reply = yield Request("GET", "/readyz", once=True)
    return reply.ok


def classes(search: str = "", *, limit: int | None = None) -> Plan[list[KnownClass]]:
    """
    Return the learnt classes, in the order of their first sample.

    Args:
        search: those alone whose names hold this, in large letters or small.
        limit: so many at most, the first ones.

    Raises:
        ApiError: with the service's own words; so do all below.
    """
    asked = {"search": search} if search else {}
    asked |= {} if limit is None else {"limit": str(limit)}
    path = f"/classes?{urlencode(asked)}" if asked else "/classes"
    return read(list[KnownClass], (yield from ask("GET", path))["classes"])


def class_(name: str) -> Plan[KnownClass]:
    """Return one learnt class; 404 where there is none of this name."""
    return read(KnownClass, (yield from ask("GET", f"/classes/{quote(name, safe='')}")))


def versions(limit: int = 100) -> Plan[list[VersionRecord]]:
    """Return the newest published versions, the newest first."""
    said = yield from ask("GET", f"/versions?limit={limit}")
    return read(list[VersionRecord], said["versions"])


def learning() -> Plan[Learning]:
    """Return how far learning is, and how well it does."""
    return read(Learning, (yield from ask("GET", "/learning")))


def labelling() -> Plan[Labelling]:
    """Return whether each class has labels enough, and which to label next."""
    return read(Labelling, (yield from ask("GET", "/labelling")))


def pause(reason: str = "") -> Plan[str | None]:
    """
    Hold learning; samples are taken up to the queue's limits, and answers go on.

    Returns:
        Why it is held.
    """
    body = {"reason": reason} if reason else {}
    return read(_Held, (yield from ask("POST", "/learning/pause", body)))["held"]


def resume() -> Plan[str | None]:
    """Let learning go on; return why it is still held, or None."""
    return read(_Held, (yield from ask("POST", "/learning/resume", {})))["held"]


_Held = dict[str, str | None]


def activate(version: int) -> Plan[Receipt]:
    """Have learning go on from an earlier version, without the samples after it."""
    # A key, so that what is sent again after a lost answer is done once.
    key = {"Idempotency-Key": uuid.uuid4().hex}
    return read(Receipt, (yield from ask("POST", f"/versions/{version}/activate", headers=key)))


def pin(version: int) -> Plan[int | None]:
    """Have every service answer with this version; return which is pinned."""
    return read(_Pinned, (yield from ask("POST", f"/versions/{version}/pin")))["pinned"]


def unpin(version: int | None = None) -> Plan[int | None]:
    """
    Answer with the newest version again; return which is still pinned, if another one is.

    Args:
        version: the one to take the pin off; None asks which it is.
    """
    version = (yield from learning()).pinned if version is None else version
    if version is None:
        return None
    return read(_Pinned, (yield from ask("DELETE", f"/versions/{version}/pin")))["pinned"]


_Pinned = dict[str, int | None]
