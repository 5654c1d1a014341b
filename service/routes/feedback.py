"""`/feedback`: what is in a picture that was asked about, or what is not. ①②"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import openapi
from service.auth import caller_of
from service.context import service_of
from service.feedback import give_feedback, read_feedback
from service.rendering import answer
from service.schemas import ReceiptOut

router = APIRouter(tags=["feedback"])


@router.post(
    "/feedback",
    status_code=202,
    summary="Correct an answer, or confirm it",
    openapi_extra=openapi.FEEDBACK,
    responses={
        202: {"model": ReceiptOut, "description": "Accepted: it is on disk."},
        200: {"model": ReceiptOut, "description": "Accepted before."},
        **openapi.problems(400, 404, 408, 409, 413, 415, 422, 429, 503),
    },
)
async def post_feedback(request: Request) -> Response:
    """
    With `label` the picture that was asked about becomes a sample, without being sent again; with
    `not_label` it is held against that class.

    Scored by the version that serves when it comes to the learner, then learnt: `GET /samples/{id}`
    says by which version. A prediction gets feedback once.
    """
    service = service_of(request)
    model = service.loaded()
    receipt = await give_feedback(service, model, await read_feedback(request), caller_of(request))
    about = {"id": receipt.id, "seq": receipt.seq, "status": "accepted"}
    location = {"Location": f"/samples/{receipt.id}"}
    return answer(about, 200 if receipt.repeated else 202, location)
