"""
The KServe v2 protocol (Open Inference Protocol), as Triton's client speaks it. ①⑨

One model, called `everlens` whatever learns in it; a version is a version of ours, and each answer
names the one that gave it.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Path, Request, Response
from PIL import Image

from everlens import __version__
from everlens.pixels import PixelSpec
from service import body, openapi, tensors
from service.answering import Question, Questions, answered
from service.auth import caller_of
from service.context import Model, Service, service_of
from service.kserve_schemas import (
    InferIn,
    InferOut,
    LiveOut,
    ModelAboutOut,
    ModelReadyOut,
    ReadyOut,
    ServerOut,
)
from service.problems import Problem, field_problem, fields_problem
from service.rendering import answer
from service.schemas import (
    EXAMPLE_IMAGE,
    INTEGER_MAX,
    FieldErrors,
    QueryFields,
    image_bytes,
    validated,
)
from service.tensors import Array

router = APIRouter(tags=["neighbours"])

NAME = "everlens"
OUTPUTS = {"label": "BYTES", "score": "FP32", "samples": "INT64", "prediction_id": "BYTES"}

# How far beyond black and white numbers may be: what a resize of floats overshoots.
_OVERSHOOT = 32

ModelName = Annotated[str, Path(examples=[NAME])]
Version = Annotated[
    int,
    Path(ge=0, le=INTEGER_MAX, description="Of GET /versions; 0 is frozen.", examples=[0]),
]


@router.get(
    "/v2/health/live", summary="KServe: the process lives", responses={200: {"model": LiveOut}}
)
async def get_live() -> Response:
    """200 as long as the event loop turns."""
    return answer({"live": True})


@router.get(
    "/v2/health/ready",
    summary="KServe: it may be asked",
    responses={200: {"model": ReadyOut}, **openapi.problems(503)},
)
async def get_ready(request: Request) -> Response:
    """As /readyz."""
    service_of(request).ready()
    return answer({"ready": True})


@router.get("/v2", summary="KServe: what answers", responses={200: {"model": ServerOut}})
async def get_server() -> Response:
    """Name and version of the program."""
    extensions = ["binary_tensor_data"]
    return answer({"name": NAME, "version": __version__, "extensions": extensions})


_ABOUT: dict[int | str, dict[str, Any]] = {
    200: {"model": ModelAboutOut},
    **openapi.problems(404, 422, 503),
}
_MODEL_READY: dict[int | str, dict[str, Any]] = {
    200: {"model": ModelReadyOut},
    **openapi.problems(404, 422, 503),
}


@router.get("/v2/models/{model}", summary="KServe: the model", responses=_ABOUT)
async def get_model(request: Request, model: ModelName) -> Response:
    """Its versions and tensors."""
    return _about(_model(request, model))


@router.get(
    "/v2/models/{model}/versions/{version}", summary="KServe: one version", responses=_ABOUT
)
async def get_version(request: Request, model: ModelName, version: Version) -> Response:
    """As for the model, once this version is known to be kept."""
    there = _model(request, model)
    _check_kept(there, version)
    return _about(there)


@router.get(
    "/v2/models/{model}/ready", summary="KServe: the model is ready", responses=_MODEL_READY
)
async def get_model_ready(request: Request, model: ModelName) -> Response:
    """200 when it may be asked."""
    _model(request, model)
    return answer({"name": NAME, "ready": True})


@router.get(
    "/v2/models/{model}/versions/{version}/ready",
    summary="KServe: a version is ready",
    responses=_MODEL_READY,
)
async def get_version_ready(request: Request, model: ModelName, version: Version) -> Response:
    """200 when this version may be asked: the last few, and 0."""
    _check_kept(_model(request, model), version)
    return answer({"name": NAME, "ready": True})


_EXAMPLE = {
    "inputs": [
        {"name": "image", "datatype": "BYTES", "shape": [1], "data": [EXAMPLE_IMAGE]},
        {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["heron", "stork"]},
    ]
}
_INFER: dict[str, Any] = {
    "openapi_extra": {
        "parameters": [
            {
                "name": tensors.HEADER_LENGTH,
                "in": "header",
                "schema": {"type": "integer", "minimum": 0},
                "description": "Length of the JSON, where tensors stand behind it as bytes.",
            }
        ],
        **openapi.json_body(InferIn, _EXAMPLE),
    },
    "responses": {
        200: {
            "model": InferOut,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
        **openapi.problems(400, 404, 408, 409, 413, 415, 422, 503),
    },
}


@router.post("/v2/models/{model}/infer", summary="KServe: ask", **_INFER)
async def post_infer(request: Request, model: ModelName) -> Response:
    """The newest version answers, and says which one it is."""
    return await _infer(request, _model(request, model), None)


@router.post(
    "/v2/models/{model}/versions/{version}/infer", summary="KServe: ask one version", **_INFER
)
async def post_version_infer(request: Request, model: ModelName, version: Version) -> Response:
    """One of the last few versions answers, or with 0 the frozen base model."""
    return await _infer(request, _model(request, model), version)


def _model(request: Request, name: str) -> Model:
    if name != NAME:
        raise Problem("unknown-model", f"the model here is {NAME!r}; ask for it by that name")
    return service_of(request).ready()


def _check_kept(model: Model, version: int) -> None:
    if model.serving.find(version) is None:
        kept = ", ".join(map(str, model.serving.versions))
        raise Problem("unknown-version", f"version {version} is not kept; ask for one of {kept}")


def _about(model: Model) -> Response:
    size = model.backbone.pixels.size
    return answer(
        {
            "name": NAME,
            "versions": [str(version) for version in model.serving.versions],
            "platform": f"{NAME}_{model.backbone.name}",
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [-1]},
                {"name": "pixels", "datatype": "FP32", "shape": [-1, 3, size, size]},
                {"name": "labels", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {
                    "name": name,
                    "datatype": kind,
                    "shape": [-1] if name == "prediction_id" else [-1, -1],
                }
                for name, kind in OUTPUTS.items()
            ],
        }
    )


async def _infer(request: Request, model: Model, version: int | None) -> Response:
    service = service_of(request)
    asked, questions = await _read(request, service, model, version)
    answers = await answered(service, model, questions, caller_of(request))
    return _rendered(asked, answers)


async def _read(
    request: Request, service: Service, model: Model, version: int | None
) -> tuple[InferIn, Questions]:
    body.without_parameters(request)
    if body.media_type(request) not in {"", body.JSON, "application/octet-stream"}:
        raise body.unsupported(request, body.JSON)
    if "content-encoding" in request.headers:
        raise Problem("unsupported-content", "send the body as it is, without Content-Encoding")
    header_length = request.headers.get(tensors.HEADER_LENGTH)
    text, behind = tensors.split(await request.body(), header_length)
    try:
        asked = validated(InferIn, body.parse_json(text))
        inputs = {tensor.name: tensors.read(tensor, behind) for tensor in asked.inputs}
        behind.check_empty()
        _check_names(asked, inputs)
        fields = _fields(inputs.get("labels"), asked.parameters.top, version, service)
        images = await _images(inputs, service, model)
    except FieldErrors as error:
        raise fields_problem(error.errors[:16]) from error
    return asked, Questions([Question(image, fields) for image in images], many=True)


def _check_names(asked: InferIn, inputs: dict[str, Array]) -> None:
    if len(inputs) < len(asked.inputs) or inputs.keys() - {"image", "pixels", "labels"}:
        raise field_problem("inputs", "send `image` or `pixels`, and `labels` where you want some")
    if ("image" in inputs) == ("pixels" in inputs):
        raise field_problem("inputs", "send either `image` or `pixels`")
    unknown = [output.name for output in asked.outputs if output.name not in OUTPUTS]
    if unknown:
        raise field_problem("outputs", f"are {', '.join(OUTPUTS)}; ask for some of them")


def _fields(labels: Array | None, top: int, version: int | None, service: Service) -> QueryFields:
    if labels is None:
        return validated(QueryFields, {"top": top, "version": version})
    if labels.size > service.settings.max_labels_per_request:
        most = service.settings.max_labels_per_request
        raise field_problem("labels", f"has {labels.size} names; send at most {most}")
    try:
        names = [name if isinstance(name, str) else name.decode() for name in labels.ravel()]
    except (UnicodeDecodeError, AttributeError):
        raise field_problem("labels", "are BYTES in UTF-8") from None
    return validated(QueryFields, {"labels": names, "top": top, "version": version})


async def _images(inputs: dict[str, Array], service: Service, model: Model) -> list[bytes]:
    """Return the pictures as files."""
    given = inputs["image"] if "image" in inputs else inputs["pixels"]
    count = given.size if "image" in inputs else len(given) if given.ndim else 0
    most = min(service.settings.max_queries_per_request, service.settings.max_queued_queries)
    if not 1 <= count <= most:
        raise field_problem("inputs", f"have {count} pictures; send 1 to {most}")
    if "pixels" in inputs:
        return await asyncio.to_thread(files_of, given, model.backbone.pixels)
    try:
        return [
            image if isinstance(image, bytes) else image_bytes(image) for image in given.ravel()
        ]
    except (ValueError, TypeError) as error:
        raise field_problem("image", str(error)) from error


def files_of(pixels: Array, spec: PixelSpec) -> list[bytes]:
    """
    Return normalised pixels (N × 3 × size × size, float32) as PNG files of the same pictures.

    So they go the one way that all pictures go; levels of eight bits come back exactly.

    Raises:
        Problem: 422 for another shape, or numbers that no preprocessing gives.
    """
    if pixels.shape[1:] != (3, spec.size, spec.size) or pixels.dtype != np.float32:
        message = f"has the shape {list(pixels.shape)}; send FP32 [N, 3, {spec.size}, {spec.size}]"
        raise field_problem("pixels", message)
    mean, std = (np.array(three, np.float32).reshape(3, 1, 1) for three in (spec.mean, spec.std))
    with np.errstate(over="ignore", invalid="ignore"):
        levels = (pixels * std + mean) * 255
    if not (np.abs(levels - 127.5) <= 127.5 + _OVERSHOOT).all():  # nor where it is not a number
        message = (
            f"is not (value / 255 − mean) / std with mean {list(spec.mean)} and std "
            f"{list(spec.std)}; send what the model's own preprocessing gives"
        )
        raise field_problem("pixels", message)
    pictures = levels.round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return [_png(picture) for picture in pictures]


def _png(picture: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _rendered(asked: InferIn, answers: list[dict[str, Any]]) -> Response:
    wanted = {output.name: output.parameters.binary_data for output in asked.outputs}
    wanted = wanted or dict.fromkeys(OUTPUTS, asked.parameters.binary_data_output)
    made = [tensors.written(name, _OUTPUT[name](answers), binary=b) for name, b in wanted.items()]
    about: dict[str, Any] = {
        "model_name": NAME,
        "model_version": str(answers[0]["version"]),
        "parameters": {"learned_through": answers[0]["learned_through"]},
        "outputs": [tensor for tensor, _ in made],
    }
    text = orjson.dumps(about if asked.id is None else about | {"id": asked.id})
    if not any(wanted.values()):
        return Response(text, media_type=body.JSON)
    content = b"".join([text, *(data for _, data in made)])
    headers = {tensors.HEADER_LENGTH: str(len(text))}
    return Response(content, 200, headers, "application/octet-stream")


def _lines(field: str, dtype: Any) -> Callable[[list[dict[str, Any]]], Array]:
    def values(answers: list[dict[str, Any]]) -> Array:
        return np.array([[line[field] for line in a["predictions"]] for a in answers], dtype)

    return values


_OUTPUT: dict[str, Callable[[list[dict[str, Any]]], Array]] = {
    "label": _lines("label", object),
    "score": _lines("score", np.float32),
    "samples": _lines("samples", np.int64),
    "prediction_id": lambda answers: np.array([a["prediction_id"] for a in answers], object),
}
