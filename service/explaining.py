"""Why an answer is what it is: the experts' shares in it, and the nearest labelled pictures. ⑨"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from everlens.bus.exhibits import Asking
from everlens.errors import LearnerSilent
from everlens.exhibits import Exhibit
from service.batcher import Answer, Shares

# Of one request: each picture that is explained brings six others.
EXPLAINED_MAX = 8

_NOTHING_KEPT = "the learner's replay buffer holds no picture yet; POST labelled ones to /samples"


_NOT_SHOWN = "the labelled pictures are shown to a key with the scope `read`"


async def explanations(
    asking: Asking | None, answers: Sequence[Answer]
) -> list[dict[str, Any] | None]:
    """
    Return why each query was answered so; None for those that did not ask.

    Args:
        asking: the way to the learner; None for somebody who may not see its pictures.
        answers: to the queries.
    """
    return await asyncio.gather(*(_explained(asking, answer) for answer in answers))


async def _explained(asking: Asking | None, answer: Answer) -> dict[str, Any] | None:
    if answer.explanation is None:
        return None
    exemplars, note = await _nearest(asking, answer.explanation.feature)
    experts = [
        {"label": line.label, **_rounded(shares)}
        for line, shares in zip(answer.ranked, answer.explanation.shares, strict=True)
    ]
    return {"experts": experts, "exemplars": exemplars, "note": note}


async def _nearest(
    asking: Asking | None, feature: bytes
) -> tuple[list[dict[str, Any]] | None, str | None]:
    """Return the nearest labelled pictures, and why there are none."""
    if asking is None:
        return None, _NOT_SHOWN
    try:
        shown = await asking.nearest(feature)
    except LearnerSilent as error:
        return None, str(error)
    return [_exemplar(exhibit) for exhibit in shown], None if shown else _NOTHING_KEPT


def _exemplar(exhibit: Exhibit) -> dict[str, Any]:
    return {
        "sample_id": exhibit.id,
        "label": exhibit.label,
        "similarity": round(exhibit.similarity, 4),
        "image": f"data:image/jpeg;base64,{base64.b64encode(exhibit.image).decode()}",
    }


def _rounded(shares: Shares) -> dict[str, float | None]:
    return {
        name: None if share is None else round(share, 6) for name, share in shares._asdict().items()
    }
