"""`/versions`: go on from an earlier one. ①"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Request, Response

from everlens.records import ID_CHARACTERS_MAX
from service import openapi
from service.activation import activate, pin
from service.context import service_of
from service.rendering import answer
from service.schemas import INTEGER_MAX, PinOut, ReceiptOut

router = APIRouter(tags=["versions"])

Version = Annotated[int, Path(ge=0, le=INTEGER_MAX, description="Of GET /versions.", examples=[1])]
PinnedVersion = Annotated[
    int, Path(ge=1, le=INTEGER_MAX, description="Of GET /versions.", examples=[1])
]


@router.post(
    "/versions/{version}/activate",
    status_code=202,
    summary="Go on learning from an earlier version",
    responses={
        202: {"model": ReceiptOut, "description": "Accepted: it is on disk."},
        200: {"model": ReceiptOut, "description": "Accepted before."},
        **openapi.problems(404, 409, 410, 422, 429, 503),
    },
)
async def post_activate(
    request: Request,
    version: Version,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=ID_CHARACTERS_MAX, pattern="^[!-~]+$")
    ] = None,
) -> Response:
    """
    The learner takes up the adapter of that version and forgets the samples that came after it.

    It is an entry of the log like a sample: `GET /samples/{id}` says which version came of it. The
    samples set aside are not learnt again; send those that were right once more, under new ids.
    """
    receipt = await activate(service_of(request), version, idempotency_key)
    location = {"Location": f"/samples/{quote(receipt.id, safe='')}"}
    about = {"id": receipt.id, "seq": receipt.seq, "status": "accepted"}
    return answer(about, 200 if receipt.repeated else 202, location)


@router.post(
    "/versions/{version}/pin",
    summary="Answer with an earlier version",
    responses={200: {"model": PinOut}, **openapi.problems(404, 410, 422, 503)},
)
async def post_pin(request: Request, version: PinnedVersion) -> Response:
    """Every service answers with that version until the pin is taken off; learning goes on."""
    await pin(service_of(request), version)
    return answer({"pinned": version})


@router.delete(
    "/versions/{version}/pin",
    summary="Answer with the newest version again",
    responses={200: {"model": PinOut}, **openapi.problems(422, 503)},
)
async def delete_pin(request: Request, version: PinnedVersion) -> Response:
    """Take the pin off this version; where another one is pinned, or none, nothing changes."""
    follower = service_of(request).follower
    if await follower.pinned() == version:
        await follower.unpin()
    return answer({"pinned": await follower.pinned()})
