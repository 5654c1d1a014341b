"""Hugging Face's zero-shot image classification, as `InferenceClient(model=URL)` asks for it. ①⑨"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field

from service import body, openapi
from service.answering import Question, Questions, answered
from service.auth import caller_of
from service.context import service_of
from service.problems import field_problem, fields_problem
from service.rendering import answer
from service.schemas import (
    EXAMPLE_IMAGE,
    FieldErrors,
    Image,
    Label,
    QueryFields,
    Share,
    Strict,
    image_bytes,
    validated,
)

router = APIRouter(tags=["neighbours"])

_LABELS = "parameters.candidate_labels"
_EXAMPLE = {"inputs": EXAMPLE_IMAGE, "parameters": {"candidate_labels": ["heron", "stork"]}}


def _none(template: Any) -> None:
    if template is not None:
        raise ValueError("is not taken: what is learnt of a name is learnt in EVERLENS_TEMPLATES")


class ParametersIn(Strict):
    """What is asked about the picture."""

    candidate_labels: list[Label] = Field(min_length=1, examples=[["heron", "stork"]])
    hypothesis_template: Annotated[None, BeforeValidator(_none)] = Field(
        None, description="Not taken: names are learnt in the model's own templates."
    )


class ZeroShotIn(Strict):
    """A picture and the names to choose from."""

    inputs: Image
    parameters: ParametersIn


class ScoredLabelOut(Strict):
    """One name and its probability."""

    label: str
    score: Share


@router.post(
    "/hf/zero-shot-image-classification",
    summary="Hugging Face: which of these names?",
    openapi_extra=openapi.json_body(ZeroShotIn, _EXAMPLE),
    responses={
        200: {"model": list[ScoredLabelOut]},
        **openapi.problems(400, 408, 413, 415, 422, 503),
    },
)
async def post_zero_shot(request: Request) -> Response:
    """
    All candidates, the most probable first; the scores add up to 1.

    The answer is that of `POST /classify`, so what was learnt of a name counts.
    """
    service = service_of(request)
    model = service.ready()
    asked = await body.json_as(request, ZeroShotIn)
    question = _question(asked, service.settings.max_labels_per_request)
    questions = Questions([question], many=False)
    (found,) = await answered(service, model, questions, caller_of(request))
    lines = found["predictions"]
    return answer([{"label": line["label"], "score": line["score"]} for line in lines])


def _question(asked: ZeroShotIn, labels_max: int) -> Question:
    labels = asked.parameters.candidate_labels
    if len(labels) > labels_max:
        message = f"has {len(labels)} names; send at most {labels_max}"
        raise field_problem(_LABELS, message)
    try:
        fields = validated(QueryFields, {"labels": labels})
        # All of them, also where the settings allow more than another route answers.
        every = fields.model_copy(update={"top": len(labels)})
        return Question(image_bytes(asked.inputs), every)
    except FieldErrors as error:
        raise fields_problem([e | {"field": _LABELS} for e in error.errors]) from error
    except ValueError as error:
        raise field_problem("inputs", str(error)) from error
