"""How things are now: what `GET /learning` says, and what is said of version 0. ①"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.context import Service

BASE_VERSION: dict[str, Any] = {
    "version": 0,
    "published_at": None,
    "learned_through": 0,
    "samples": 0,
    "classes": 0,
    "parent": "",
    "adapter": "",
    "digest": "",
    "gate": None,
    "restored_from": None,
}


async def learning(service: Service) -> dict[str, Any]:
    """
    Return what serves, what waits, what the learner says of itself, and what was refused.

    Raises:
        Problem: 503 while the model loads.
        LogUnavailable, OtherLog: the log does not answer, or is another one.
    """
    model = service.loaded()
    backlog = await service.log.backlog()
    current = model.serving.current
    return {
        "version": current.version,
        "learned_through": current.learned_through,
        "accepted_through": backlog.seq,
        "backlog": {"entries": backlog.entries, "bytes": backlog.bytes},
        "paused": backlog.paused or None,
        "held": backlog.held or None,
        "pinned": await service.follower.pinned(),
        "learner": await service.log.learner(),
        "refused_versions": [asdict(refused) for refused in model.swaps.refused.values()],
    }
