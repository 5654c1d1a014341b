"""`/predictions`: the answers of late, and what is best labelled next. ①"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from service import openapi
from service.auth import Caller, caller_of
from service.context import service_of
from service.feedback_schemas import (
    LISTED_MAX,
    PREDICTION_ID_LENGTH_MAX,
    KeptPredictionOut,
    KeptPredictionsOut,
    Order,
)
from service.predictions import Kept, uncertain
from service.problems import Problem
from service.rendering import answer

router = APIRouter(tags=["feedback"])

PredictionId = Annotated[
    str,
    Path(
        max_length=PREDICTION_ID_LENGTH_MAX,
        description="Of an answer of POST /classify.",
        examples=[openapi.PREDICTION_ID],
    ),
]

# What was answered is one of three kinds of picture, and their first bytes differ.
_MEDIA_TYPES = {0xFF: "image/jpeg", 0x89: "image/png", ord("R"): "image/webp"}

# The client's own bytes: shown as a picture on a page of ours, and as nothing else anywhere.
_PICTURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}


@router.get(
    "/predictions",
    summary="The answers of late",
    responses={200: {"model": KeptPredictionsOut}, **openapi.problems(422)},
)
async def get_predictions(
    request: Request,
    order: Annotated[Order, Query(description="`uncertain` is what to label next.")] = "newest",
    limit: Annotated[int, Query(ge=1, le=LISTED_MAX)] = 20,
) -> Response:
    """
    What this process answered lately and still has the pictures of; another replica has others.

    `uncertain`: the smallest margin between the first two lines first, each picture once and with
    its newest answer, without those that have feedback. A key sees what was asked with it; with the
    scope `admin`, all.
    """
    kept = service_of(request).predictions.of(_whose(caller_of(request)))
    if order == "newest":
        chosen = kept[: -limit - 1 : -1]
    else:
        # Aside: of tens of thousands of small pictures it takes some hundredths of a second.
        chosen = await asyncio.to_thread(uncertain, kept, limit)
    return answer({"predictions": [_record(one) for one in chosen]})


@router.get(
    "/predictions/{prediction_id}",
    summary="One answer",
    responses={200: {"model": KeptPredictionOut}, **openapi.problems(404, 422)},
)
async def get_prediction(request: Request, prediction_id: PredictionId) -> Response:
    """One answer that is still remembered here."""
    return answer(_record(_found(request, prediction_id)))


@router.get(
    "/predictions/{prediction_id}/image",
    summary="The picture of an answer",
    response_class=Response,
    responses={
        200: {
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in _MEDIA_TYPES.values()
            }
        },
        **openapi.problems(404, 422),
    },
)
async def get_picture(request: Request, prediction_id: PredictionId) -> Response:
    """The picture as the client sent it."""
    image = _found(request, prediction_id).image
    return Response(image, headers=_PICTURE_HEADERS, media_type=_MEDIA_TYPES[image[0]])


def _whose(caller: Caller) -> str | None:
    """
    Return the tenant whose predictions a caller sees; None is everybody.

    An answer has somebody's picture, and one camera's key is nobody's licence to look through the
    others. What is learnt is shared; what was only asked is not.
    """
    return None if "admin" in caller.scopes else caller.id


def _found(request: Request, prediction_id: str) -> Kept:
    kept = service_of(request).predictions.find(prediction_id)
    whose = _whose(caller_of(request))
    if kept is None or whose not in {None, kept.tenant}:
        raise Problem(
            "unknown-prediction",
            "this prediction is kept by another replica, or no longer, or was asked with another "
            "key; GET /predictions lists those that can be had here",
        )
    return kept


def _record(kept: Kept) -> dict[str, Any]:
    return {
        "prediction_id": kept.id,
        "at": round(kept.at, 3),
        "version": kept.version,
        "learned_through": kept.learned_through,
        "predictions": kept.lines,
        "known": kept.known,
        "margin": None if kept.margin is None else round(kept.margin, 6),
        "feedback": kept.feedback,
    }
