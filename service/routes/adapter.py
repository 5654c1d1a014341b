"""`/versions/{version}/adapter`: what was tuned, to be taken elsewhere. ①"""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from everlens.errors import PartError
from everlens.model.backbone import STARTER, Backbone
from everlens.model.parts import check_manifest, decode_adapter
from everlens.model.peft_format import peft_files
from service import openapi
from service.activation import kept
from service.context import service_of
from service.problems import Problem
from service.schemas import INTEGER_MAX

router = APIRouter(tags=["versions"])

_FROZEN: dict[str, Any] = {"the frozen model": {"value": 0, "x-status": 404}}
_README = """\
The adapter of version {version} of an everlens, for the base model {model}.

    model = {made}  # the very same base model
    model = peft.PeftModel.from_pretrained(model, "this folder")

It bends the features of the model. What everlens knows beside it, the closed form on labelled
samples and the weights of its experts, is not in here.

{about}
"""
_STARTER_MADE = (
    'nn.ModuleDict({"image_tower": starter.image_tower, "text_tower": starter.text_tower})'
)
_HALVED = """\
peft up to 0.21.2 adds the change of the output projection of attention twice
(huggingface/peft#3774), so it lies here at half its size. For a peft that adds it once, download it
with ?whole=true."""
_WHOLE = """\
The change of the output projection of attention lies here as it is. peft up to 0.21.2 adds it twice
(huggingface/peft#3774); for that one, download it without ?whole=true."""


@router.get(
    "/versions/{version}/adapter",
    summary="The tuned weights, for peft",
    response_class=Response,
    responses={
        200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}},
        **openapi.problems(404, 410, 422, 503),
    },
)
async def get_adapter(
    request: Request,
    version: Annotated[
        int,
        Path(ge=0, le=INTEGER_MAX, description="Of GET /versions.", openapi_examples=_FROZEN),
    ],
    *,
    whole: Annotated[
        bool, Query(description="For a `peft` that adds attention's output projection once.")
    ] = False,
) -> Response:
    """
    A zip of `adapter_config.json` and `adapter_model.safetensors`, as `peft` loads them.

    Of the versions that are still stored. It loads on the same base model of open_clip, by the
    names of its modules, and gives the image features that this version answers with.
    """
    service = service_of(request)
    backbone = service.loaded().backbone
    manifest = await kept(service, version) if version else None
    digest = None if manifest is None else manifest.parts.get("adapter")
    if manifest is None or digest is None:
        raise Problem(
            "no-adapter",
            f"version {version} answers without an adapter; GET /versions names that of each",
        )
    try:
        check_manifest(backbone, manifest)
        part = await service.follower.part(digest)
        content = await asyncio.to_thread(_archive, backbone, part, version, whole=whole)
    except PartError as error:
        raise Problem("version-gone", f"the adapter cannot be given: {error}") from error
    name = f"everlens-adapter-{version}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, 200, headers, "application/zip")


def _archive(backbone: Backbone, part: bytes, version: int, *, whole: bool) -> bytes:
    tensors, spec = decode_adapter(part)
    about = _WHOLE if whole else _HALVED
    made = _STARTER_MADE if backbone.name == STARTER else "open_clip.create_model(...)"
    text = _README.format(version=version, model=backbone.name, made=made, about=about)
    files = peft_files(backbone, tensors, spec, added_twice=not whole)
    return _zipped(files | {"README.md": text.encode()})


def _zipped(files: Mapping[str, bytes]) -> bytes:
    """Return an archive that is the same whenever it is made."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        for name, content in files.items():
            writing.writestr(zipfile.ZipInfo(name), content)
    return archive.getvalue()
