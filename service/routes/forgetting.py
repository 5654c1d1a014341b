"""What was learnt is unlearnt: a sample, or a class. ①"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Request, Response

from everlens.records import ID_CHARACTERS_MAX, Receipt, as_written
from service import openapi
from service.auth import caller_of
from service.context import service_of
from service.forgetting import forget_class, forget_sample
from service.rendering import answer
from service.schemas import NAME_LENGTH_MAX, ReceiptOut

router = APIRouter(tags=["forgetting"])

_RECEIPTS: dict[int | str, dict[str, Any]] = {
    202: {"model": ReceiptOut, "description": "Accepted: it is on disk."},
    200: {"model": ReceiptOut, "description": "Accepted before."},
}


@router.delete(
    "/samples/{sample_id:path}",
    status_code=202,
    summary="Forget a sample",
    responses={**_RECEIPTS, **openapi.problems(404, 409, 422, 429, 503)},
)
async def delete_sample(
    request: Request,
    sample_id: Annotated[str, Path(max_length=NAME_LENGTH_MAX, examples=["first"])],
) -> Response:
    """
    Evidence, replay and later tuning are without it from the next version on.

    It is an entry of the log: `GET /samples/{id}` of the receipt's id says what it did, and what it
    does not reach. The sample's own id then says `forgotten`; its picture is not learnt again under
    that id, send it under a new one.
    """
    sample_id = as_written(sample_id)
    return _rendered(await forget_sample(service_of(request), sample_id, caller_of(request)))


@router.delete(
    "/classes/{name:path}",
    status_code=202,
    summary="Forget a class",
    responses={**_RECEIPTS, **openapi.problems(404, 409, 422, 429, 503)},
)
async def delete_class(
    request: Request,
    name: Annotated[str, Path(max_length=NAME_LENGTH_MAX, examples=["heron"])],
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=ID_CHARACTERS_MAX, pattern="^[!-~]+$")
    ] = None,
) -> Response:
    """
    All samples of the class that were accepted before are forgotten, and its name begins anew.

    `GET /samples/{id}` of the receipt's id has a report: what was removed, how well the other
    classes are told apart before and after, what is unlearnt and what is not.
    """
    name, caller = as_written(name), caller_of(request)
    return _rendered(await forget_class(service_of(request), name, idempotency_key, caller))


def _rendered(receipt: Receipt) -> Response:
    location = {"Location": f"/samples/{quote(receipt.id, safe='')}"}
    about = {"id": receipt.id, "seq": receipt.seq, "status": "accepted"}
    return answer(about, 200 if receipt.repeated else 202, location)
