"""Go on from an earlier version: served from it (a pin), or learnt from it (an activation). ②⑧"""

from __future__ import annotations

import hashlib
import uuid

from everlens.artifact import Manifest
from everlens.bus.admission import Admittable
from everlens.errors import PartError
from everlens.records import Activation, EntryKind, Receipt
from everlens.wire import encode_activation
from service.context import Service
from service.problems import Problem


async def pin(service: Service, version: int) -> None:
    """
    Let every service answer with a version, whatever is learnt meanwhile.

    Raises:
        Problem: 404 or 410, the version is not there.
    """
    manifest = await kept(service, version)
    if not await service.follower.pin(version, manifest.digest):
        raise _gone(version)


async def activate(service: Service, version: int, entry_id: str | None) -> Receipt:
    """
    Ask the learner to go on from a version, through the log; samples after it are set aside.

    The entry carries the version's adapter, so that whoever learns the log again decides the same.

    Raises:
        Problem: 404 or 410, the version is not there.
    """
    activation = Activation(0, 0, b"")
    if version:
        manifest = await kept(service, version)
        digest = manifest.parts.get("adapter")
        try:
            adapter = b"" if digest is None else await service.follower.part(digest)
        except PartError as error:
            raise _gone(version) from error
        activation = Activation(version, manifest.learned_through, adapter)
    payload = encode_activation(activation)
    entry = Admittable(
        id=entry_id or f"activate-{uuid.uuid4().hex}",
        digest=hashlib.sha256(payload).hexdigest(),
        payload=payload,
        kind=EntryKind.ACTIVATE,
    )
    (receipt,) = await service.admission.admit([entry])
    return receipt


async def kept(service: Service, version: int) -> Manifest:
    """
    Return the manifest of a version whose parts are still stored.

    Raises:
        Problem: 404 or 410, the version is not there.
    """
    record = await service.follower.record(version)
    if record is None:
        raise Problem("unknown-version", f"version {version} is not remembered; see GET /versions")
    try:
        return await service.follower.manifest(version, record["digest"])
    except PartError as error:
        raise _gone(version) from error


def _gone(version: int) -> Problem:
    return Problem(
        "version-gone",
        f"the parts of version {version} are no longer stored: only those of the last few and of "
        "the pinned one are; choose a newer one of GET /versions",
    )
