"""`/labelling`: have I labelled enough, and which class gains most by the next label? ①"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import Field

from everlens.model.snapshot import CURVE_BINS, Snapshot
from service import openapi
from service.context import service_of
from service.labelling import ANSWERS_MIN, ENOUGH, LABELS_N, Outlook, outlook
from service.rendering import answer
from service.schemas import Share, Strict

router = APIRouter(tags=["insight"])

SUGGESTIONS_MAX = 5

# A sentence looks back until it sees so many answers.
_LOOKED_BACK = 3


class CurvePointOut(Strict):
    """How answers fared while the class had about so many labels."""

    samples: int = Field(ge=1, description="Labels: the middle of 1, 2 to 3, 4 to 7, …")
    recall: Share
    answers: int = Field(ge=1, description="How many were scored; beyond 255, of late.")


class ClassLabellingOut(Strict):
    """One class: how its recall grew, and what labels would still add."""

    label: str
    samples: int = Field(ge=1)
    recall: Share | None = Field(description="Of served answers before the label came, lately.")
    curve: list[CurvePointOut]
    enough: bool | None = Field(
        description=f"Whether as many labels again gain less than {100 * ENOUGH:.0f} points of its "
        "recall, in four of five cases; null where too few answers were scored to tell."
    )
    expected_gain: float | None = Field(
        ge=0, description="Points of mean recall that the next label adds; null: not known yet."
    )


class SuggestionOut(Strict):
    """A class to label next."""

    label: str
    why: str


class LabellingOut(Strict):
    """Each class, the classes to label next (best first), and by which version."""

    classes: list[ClassLabellingOut]
    suggestions: list[SuggestionOut] = Field(max_length=SUGGESTIONS_MAX)
    version: int = Field(ge=0)


@router.get(
    "/labelling",
    summary="Have I labelled enough?",
    responses={200: {"model": LabellingOut}, **openapi.problems(503)},
)
async def get_labelling(request: Request) -> Response:
    """
    A curve for each class, and where the next label is expected to gain most.

    Every labelled picture was first answered by the version of that moment: so each class has a
    curve of its recall over its labels. Errors are taken to fall by a power of the labels; what a
    class's own few answers leave open is filled in by what all classes did.
    """
    snapshot = service_of(request).ready().serving.current
    # Aside: with a hundred thousand of them it takes a second, and other requests go on.
    return await asyncio.to_thread(_told, snapshot)


def _told(snapshot: Snapshot) -> Response:
    labels_C = snapshot.classes.count_C.numpy()
    learnt_C = np.flatnonzero(labels_C)
    if not len(learnt_C):
        return answer({"classes": [], "suggestions": [], "version": snapshot.version})
    labels_C = labels_C[learnt_C]
    curve_CN2, recall_C = _history(snapshot)
    curve_CN2, recall_C = curve_CN2[learnt_C], recall_C[learnt_C]
    expected = outlook(curve_CN2, labels_C)
    enough = list(_enough(curve_CN2, expected))
    told = int(curve_CN2[:, :, 0].sum(dtype=np.int64)) >= ANSWERS_MIN
    gain_C = 100 * expected.gain_C / len(learnt_C)
    names = snapshot.learnt
    classes = [
        {
            "label": names[c],
            "samples": int(labels_C[c]),
            "recall": None if np.isnan(recall_C[c]) else round(float(recall_C[c]), 4),
            "curve": _points(curve_CN2[c]),
            "enough": enough[c],
            "expected_gain": round(float(gain_C[c]), 6) if told else None,
        }
        for c in range(len(learnt_C))
    ]
    best_first = (c for c in np.argsort(-gain_C, kind="stable").tolist() if enough[c] is not True)
    suggestions = [
        {"label": names[c], "why": _why(int(labels_C[c]), curve_CN2[c])}
        for c, _ in zip(best_first, range(SUGGESTIONS_MAX), strict=False)
    ]
    return answer({"classes": classes, "suggestions": suggestions, "version": snapshot.version})


def _history(snapshot: Snapshot) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return curve and late recall of every class; a version without records knows nothing."""
    if not snapshot.record:
        classes = len(snapshot.classes.names)
        nothing = np.zeros((classes, CURVE_BINS, 2), np.uint8)
        return nothing, np.full(classes, np.nan, np.float32)
    recall_C = torch.cat([record_CR[:, 0] for record_CR in snapshot.record])
    return torch.cat(snapshot.curve).numpy(), recall_C.numpy()


def _enough(curve_CN2: NDArray[np.uint8], expected: Outlook) -> Iterator[bool | None]:
    answers_C = curve_CN2[:, :, 0].sum(axis=1, dtype=np.int64)
    for answers, least, most in zip(answers_C, expected.least_C, expected.most_C, strict=True):
        if answers < ANSWERS_MIN or least <= ENOUGH < most:
            yield None
        else:
            yield bool(most <= ENOUGH)


def _points(curve_N2: NDArray[np.uint8]) -> list[dict[str, Any]]:
    return [
        {"samples": round(labels), "recall": round(right / answers, 4), "answers": answers}
        for labels, (answers, right) in zip(LABELS_N.tolist(), curve_N2.tolist(), strict=True)
        if answers
    ]


def _why(labels: int, curve_N2: NDArray[np.uint8]) -> str:
    """Return a sentence on a class that gains by a label."""
    have = f"{labels} label{'s' if labels > 1 else ''}"
    answers = right = 0
    for scored, hit in curve_N2[::-1].tolist():
        if answers < _LOOKED_BACK:
            answers, right = answers + scored, right + hit
    if not answers:
        return f"{have}, and no answer about it was scored yet: label another to see how it fares"
    last = f"{right} of the last {answers} answers" if answers > 1 else "the last answer"
    said = f"{last} right" if answers > 1 or right else f"{last} wrong"
    return f"{have}, {said}: label a few more"
