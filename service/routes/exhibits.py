"""`/samples/{id}/image`: the picture of a sample, as long as the learner keeps it. ①"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from everlens.records import as_written
from service import openapi
from service.context import service_of
from service.problems import Problem
from service.routes.samples import get_sample
from service.schemas import NAME_LENGTH_MAX

router = APIRouter(tags=["samples"])

_LEAF = "/image"
_HEADERS = {"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}
_JPEG = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}


@router.get(
    "/samples/{sample_id:path}/image",
    summary="The picture of a sample",
    response_class=Response,
    responses={
        200: {"content": _JPEG, "description": "As it is learnt from, at the model's size."},
        **openapi.problems(404, 422, 503),
    },
)
async def get_picture(
    request: Request,
    sample_id: Annotated[str, Path(max_length=NAME_LENGTH_MAX, examples=["first"])],
) -> Response:
    """The JPEG that the learner replays, while its buffer has room for it."""
    if not request.scope["raw_path"].endswith(_LEAF.encode()):  # an id with %2Fimage at its end
        return await get_sample(request, sample_id + _LEAF)
    service = service_of(request)
    sample_id = as_written(sample_id)
    seq = await service.log.seq_of(sample_id)
    if seq is None:
        raise Problem("unknown-sample", "no sample with this id is remembered; check the id")
    exhibit = await service.asking.of_sample(seq)
    if exhibit is None or exhibit.id != sample_id:
        raise Problem(
            "no-picture",
            "the learner does not keep this sample's picture: it is not learnt yet, was forgotten, "
            "or made room for others (EVERLENS_REPLAY_BYTES); GET /samples/{id} says what became "
            "of it",
        )
    return Response(exhibit.image, headers=_HEADERS, media_type="image/jpeg")
