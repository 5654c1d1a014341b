"""
OpenAI's embeddings, as its client asks for them: vectors of the frozen model. ①⑨

A picture comes as a data URI among the inputs. What is learnt moves no vector, so they may be
stored; the model's name stands in each answer, and another name is refused.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path, Request, Response
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from everlens.settings import Settings
from service import body, openapi
from service.context import service_of
from service.embedding import Vector, embed
from service.problems import Problem, field_error, field_problem, fields_problem
from service.rendering import answer
from service.schemas import EXAMPLE_IMAGE, NAME_LENGTH_MAX, Strict, image_bytes

router = APIRouter(tags=["neighbours"])

_DATA = "data:"
_ANOTHER: dict[str, Any] = {"another": {"value": "text-embedding-3-small", "x-status": 404}}
_EXAMPLE = {"input": ["a heron", f"data:image/png;base64,{EXAMPLE_IMAGE}"]}


def _input(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; send a text, or a picture as a data URI")
    if len(text) > NAME_LENGTH_MAX and not text.startswith(_DATA):
        raise ValueError(f"has {len(text)} characters; a text has at most {NAME_LENGTH_MAX}")
    return text


_ONE: dict[str, Any] = {"type": "string", "minLength": 1}
Inputs = Annotated[
    list[Annotated[str, AfterValidator(_input)]],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}]}),
]


class EmbeddingsIn(Strict):
    """Texts and pictures to be turned into vectors; token numbers are not taken."""

    input: Inputs = Field(
        description="Texts, and pictures (JPEG, PNG, WebP) as data URIs with base64."
    )
    model: str | None = Field(None, description="Of GET /v1/models; left out, the one there is.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64` is of little-endian 32-bit floats."
    )
    dimensions: int | None = Field(None, description="Of the model; others are refused.")
    user: str | None = Field(None, description="Taken and not used.")


class EmbeddingOut(Strict):
    """The vector of one input; its length is 1."""

    object: Literal["embedding"]
    index: int = Field(ge=0)
    embedding: list[float] | str


class UsageOut(Strict):
    """Tokens that the text tower read; a picture has none."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class EmbeddingsOut(Strict):
    """The vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingOut]
    model: str
    usage: UsageOut


class ModelOut(Strict):
    """The base model."""

    id: str
    object: Literal["model"]
    created: int = Field(ge=0, description="Not known: 0.")
    owned_by: str


class ModelsOut(Strict):
    """All models: the one there is."""

    object: Literal["list"]
    data: list[ModelOut]


@router.post("/v1/embeddings", include_in_schema=False)
@router.post(
    "/embeddings",
    summary="Vectors of texts and pictures",
    openapi_extra=openapi.json_body(EmbeddingsIn, _EXAMPLE),
    responses={
        200: {"model": EmbeddingsOut},
        **openapi.problems(400, 404, 408, 413, 415, 422, 503),
    },
)
async def post_embeddings(request: Request) -> Response:
    """
    Unit vectors in the joint space of the frozen model; also at /v1/embeddings.

    The cosine of a text and a picture says how well they fit. A class name asked with `labels`
    stands in the model's templates ("a photo of a …"); here a text is read as it stands.
    """
    service = service_of(request)
    model = service.loaded()
    asked = await body.json_as(request, EmbeddingsIn)
    items = _items(asked, service.settings)
    _check_model(asked.model, model.backbone.name)
    vectors, tokens = await embed(service, model, items)
    about = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _shown(vector, asked)}
            for index, vector in enumerate(vectors)
        ],
        "model": model.backbone.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    # numpy's numbers are written as the 32-bit floats they are.
    content = orjson.dumps(about, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type=body.JSON)


@router.get(
    "/v1/models",
    summary="The base model",
    responses={200: {"model": ModelsOut}, **openapi.problems(503)},
)
async def get_models(request: Request) -> Response:
    """The model that the vectors are of."""
    name = service_of(request).loaded().backbone.name
    return answer({"object": "list", "data": [_about(name)]})


@router.get(
    "/v1/models/{model:path}",
    summary="The base model by its name",
    responses={200: {"model": ModelOut}, **openapi.problems(404, 503)},
)
async def get_model(
    request: Request, model: Annotated[str, Path(openapi_examples=_ANOTHER)]
) -> Response:
    """The model that the vectors are of, if that is its name."""
    name = service_of(request).loaded().backbone.name
    _check_model(model, name)
    return answer(_about(name))


def _items(asked: EmbeddingsIn, settings: Settings) -> list[str | bytes]:
    """
    Return texts, and the bytes of pictures.

    Raises:
        Problem: too many, or what begins as a data URI is none.
    """
    count, most = len(asked.input), settings.max_queries_per_request
    if count > most:
        raise field_problem("input", f"has {count} texts and pictures; send at most {most}")
    items: list[str | bytes] = []
    for index, text in enumerate(asked.input):
        try:
            items.append(image_bytes(text) if text.startswith(_DATA) else text)
        except ValueError as error:
            raise field_problem("input", str(error), index=index) from error
    return items


def _check_model(asked: str | None, there: str) -> None:
    # An alias would mix vectors of two models in somebody's store, without a word.
    if asked not in {None, there}:
        raise Problem("unknown-model", f"the model here is {there!r}; ask for it by that name")


def _shown(vector: Vector, asked: EmbeddingsIn) -> Any:
    if asked.dimensions not in {None, len(vector)}:
        message = f"the vectors have {len(vector)} numbers, and cannot be cut; leave it out"
        raise fields_problem([field_error("dimensions", message)])
    if asked.encoding_format == "float":
        return vector
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _about(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "everlens"}
