"""Learning waits while somebody holds it: samples are taken and questions answered on. ①"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import body, openapi
from service.context import service_of
from service.problems import fields_problem
from service.rendering import answer
from service.schemas import FieldErrors, HeldOut, HoldIn, validated

router = APIRouter(tags=["learning"])

_NO_REASON = "no reason was given"


@router.post(
    "/learning/pause",
    summary="Hold learning",
    openapi_extra=openapi.HOLD,
    responses={200: {"model": HeldOut}, **openapi.problems(400, 413, 415, 422, 503)},
)
async def post_pause(request: Request) -> Response:
    """
    The learner takes nothing up from within a second on, until `POST /learning/resume`.

    What it is at is ended. Samples are accepted as long as the backlog has room, versions and
    answers stay as they are; a restart of anything changes none of it.
    """
    reason = await _reason(request)
    await service_of(request).log.hold(reason)
    return answer({"held": reason})


@router.post(
    "/learning/resume",
    summary="Let learning go on",
    responses={200: {"model": HeldOut}, **openapi.problems(422, 503)},
)
async def post_resume(request: Request) -> Response:
    """What waits is learnt; where nobody held learning, nothing changes."""
    await service_of(request).log.hold("")
    return answer({"held": None})


async def _reason(request: Request) -> str:
    """Return why, which need not be said."""
    content = await request.body()
    if not content:
        return _NO_REASON
    if body.media_type(request) != body.JSON:
        raise body.unsupported(request, body.JSON)
    try:
        return validated(HoldIn, body.parse_json(content)).reason or _NO_REASON
    except FieldErrors as error:
        raise fields_problem(error.errors) from error
