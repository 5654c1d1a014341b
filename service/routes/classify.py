"""`/classify`: pictures come in, ranked names go out. ①⑨"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import openapi
from service.answering import answered, read_questions
from service.auth import caller_of
from service.context import service_of
from service.direct import DirectRoute
from service.leaving import unless_left
from service.rendering import answer
from service.schemas import AnswerOut

router = APIRouter(tags=["classify"], route_class=DirectRoute)


@router.post("/classify/", include_in_schema=False)
@router.post(
    "/classify",
    summary="Ask: what is in this picture?",
    openapi_extra=openapi.CLASSIFY,
    responses={
        200: {"model": AnswerOut | list[AnswerOut], "links": openapi.OF_AN_ANSWER},
        **openapi.problems(400, 404, 408, 409, 413, 415, 422, 503, 504),
    },
)
async def post_classify(request: Request) -> Response:
    """One picture or a list; with `labels` any names, without them the learnt classes."""
    service = service_of(request)
    model = service.ready()
    questions = await read_questions(request, service.settings)
    asked = answered(service, model, questions, caller_of(request))
    answers = await (unless_left(request, asked) if questions.wait else asked)
    return answer(answers if questions.many else answers[0])
