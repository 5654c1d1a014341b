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


async def explanations(asking: Asking, answers: Sequence[Answer]) -> list[dict[str, Any] | None]:
    """Return why each query was answered so; None for those that did not ask."""
    return await asyncio.gather(*(_explained(asking, answer) for answer in answers))


async def _explained(asking: Asking, answer: Answer) -> dict[str, Any] | None:
    if answer.explanation is None:
        return None
    exemplars: list[dict[str, Any]] | None = None
    note: str | None = None
    try:
        shown = await asking.nearest(answer.explanation.feature)
        exemplars = [_exemplar(exhibit) for exhibit in shown]
        note = None if exemplars else _NOTHING_KEPT
    except LearnerSilent as error:
        note = str(error)
    experts = [
        {"label": line.label, **_rounded(shares)}
        for line, shares in zip(answer.ranked, answer.explanation.shares, strict=True)
    ]
    return {"experts": experts, "exemplars": exemplars, "note": note}


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
