"""`/samples`: labelled pictures come in, and what became of each. ①②"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Request, Response

from everlens.records import Receipt, as_written
from service import openapi
from service.auth import caller_of
from service.context import service_of
from service.direct import DirectRoute
from service.forgetting import in_words
from service.problems import Problem
from service.rendering import answer
from service.schemas import NAME_LENGTH_MAX, ReceiptOut, SampleOut
from service.submission import read_offers, submit

router = APIRouter(tags=["samples"], route_class=DirectRoute)


# With a slash too: it would else be the sample of an empty id, which takes no POST.
@router.post("/samples/", include_in_schema=False)
@router.post(
    "/samples",
    status_code=202,
    summary="Teach: send labelled pictures",
    openapi_extra=openapi.SAMPLES,
    responses={
        202: {"model": ReceiptOut | list[ReceiptOut], "description": "Accepted: it is on disk."},
        200: {"model": ReceiptOut | list[ReceiptOut], "description": "Accepted before."},
        **openapi.problems(400, 408, 409, 413, 415, 422, 429, 503),
    },
)
async def post_samples(request: Request) -> Response:
    """One picture or many, all or none; the same id and body again changes nothing."""
    service = service_of(request)
    model = service.loaded()
    offers = await read_offers(request, service.settings)
    receipts = await submit(service, model, offers, caller_of(request))
    status = 200 if all(receipt.repeated for receipt in receipts) else 202
    if offers.many:
        return answer([_record(receipt) for receipt in receipts], status)
    location = f"/samples/{quote(receipts[0].id, safe='')}"
    return answer(_record(receipts[0]), status, {"Location": location})


def _record(receipt: Receipt) -> dict[str, object]:
    return {"id": receipt.id, "seq": receipt.seq, "status": "accepted"}


@router.get(
    "/samples/{sample_id:path}",
    summary="What became of a sample",
    responses={200: {"model": SampleOut}, **openapi.problems(404, 422, 503)},
)
async def get_sample(
    request: Request,
    sample_id: Annotated[str, Path(max_length=NAME_LENGTH_MAX, examples=["first"])],
) -> Response:
    """
    Accepted, then learnt by a version, or dead with its reason; forgotten by a later version.

    Of a forgetting it has a report: what is unlearnt, and what is not.
    """
    log = service_of(request).log
    sample_id = as_written(sample_id)
    seq = await log.seq_of(sample_id)
    if seq is None:
        raise Problem("unknown-sample", "no sample with this id is remembered; check the id")
    state = await log.state_of(seq)
    about: dict[str, object] = {"id": sample_id, "seq": seq, "status": "accepted"}
    if state.dead_reason is not None:
        about |= {"status": "dead", "reason": state.dead_reason}
    elif state.forgotten_by is not None:
        about |= {"status": "forgotten", "version": state.forgotten_by}
    elif state.version is not None:
        about |= {"status": "learnt", "version": state.version}
        if state.report is not None:
            about["report"] = in_words(state.report)
    return answer(about)
