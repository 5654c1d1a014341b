"""
Label Studio's ML backend: connect it as the model of a project, at `…/label-studio`. ①②⑨

It predicts the choice of an image classification, and learns each annotation as it is made; what is
changed or deleted there is forgotten here. Its client waits a second for `health` and three for
`setup`, so neither does anything.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Request, Response

from service import body, openapi
from service.annotations import OF_ONE_PICTURE, picture_of, take
from service.answering import Question, Questions, classify
from service.auth import caller_of
from service.context import Model, Service, service_of
from service.label_studio_schemas import (
    HealthOut,
    PredictIn,
    PredictionsOut,
    SetupIn,
    SetupOut,
    TaskIn,
    WebhookIn,
    WebhookOut,
)
from service.labelling_config import LabellingConfig, read_config
from service.problems import Problem, field_problem, fields_problem
from service.rendering import answer
from service.schemas import EXAMPLE_IMAGE, FieldErrors, QueryFields, validated

router = APIRouter(tags=["neighbours"], prefix="/label-studio")

_TASKS_AT_ONCE = 16

_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="heron"/><Choice value="stork"/></Choices></View>'
)
_TASK = {"id": 1, "data": {"image": f"data:image/png;base64,{EXAMPLE_IMAGE}"}}
_CHOSEN = {"from_name": "choice", "type": "choices", "value": {"choices": ["heron"]}}
_EVENT = {
    "action": "ANNOTATION_CREATED",
    "project": {"id": 1, "created_at": "2026-11-21T23:16:05Z", "label_config": _CONFIG},
    "task": _TASK,
    "annotation": {"id": 1, "task": 1, "result": [_CHOSEN]},
}
log = logging.getLogger(__name__)


@router.get("/health", summary="Label Studio: it lives", responses={200: {"model": HealthOut}})
async def get_health() -> Response:
    """Answered at once, also while the model loads."""
    return answer({"status": "UP", "model_class": "everlens"})


@router.post(
    "/setup",
    summary="Label Studio: a project connects",
    openapi_extra=openapi.json_body(SetupIn, {"project": "1.0", "schema": _CONFIG}),
    responses={200: {"model": SetupOut}, **openapi.problems(400, 408, 413, 415, 422, 503)},
)
async def post_setup(request: Request) -> Response:
    """Loads nothing; refuses a project that does not choose names for pictures."""
    asked = await body.json_as(request, SetupIn)
    read_config(asked.label_schema, "schema")
    model = service_of(request).loaded()
    return answer({"model_version": _version(model.serving.current.version)})


@router.post(
    "/predict",
    summary="Label Studio: what would you choose?",
    openapi_extra=openapi.json_body(PredictIn, {"tasks": [_TASK], "label_config": _CONFIG}),
    responses={
        200: {"model": PredictionsOut},
        **openapi.problems(400, 404, 408, 409, 413, 415, 422, 503),
    },
)
async def post_predict(request: Request) -> Response:
    """
    The most probable choice of each task, among those of its labelling configuration.

    A picture that cannot be used costs the others nothing; where none can, it says why.
    """
    service = service_of(request)
    model = service.ready()
    asked = await body.json_as(request, PredictIn)
    config = read_config(asked.label_config, "label_config")
    fields = _fields(config, service.settings.max_labels_per_request)
    places = asyncio.Semaphore(_TASKS_AT_ONCE)

    async def predicted(task: TaskIn) -> dict[str, Any] | Problem:
        async with places:
            return await _predicted(service, model, config, fields, task)

    try:
        async with asyncio.TaskGroup() as asking:
            answers = [asking.create_task(predicted(task)) for task in asked.tasks]
    except ExceptionGroup as reasons:  # of one task, and true of all: the others are asked no more
        raise reasons.exceptions[0] from None
    outcomes = [task.result() for task in answers]
    problems = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    if len(problems) == len(outcomes):
        raise problems[0]
    for problem in problems[:1]:
        log.warning("%d of %d tasks: %s", len(problems), len(outcomes), problem)
    version = _version(model.serving.current.version)
    nothing: dict[str, Any] = {"result": [], "score": 0.0, "model_version": version}
    results = [nothing if isinstance(outcome, Problem) else outcome for outcome in outcomes]
    return answer({"results": results, "model_version": version})


@router.post(
    "/webhook",
    summary="Label Studio: somebody annotated",
    openapi_extra=openapi.json_body(WebhookIn, _EVENT),
    responses={
        200: {"model": WebhookOut},
        **openapi.problems(400, 403, 404, 408, 409, 413, 415, 422, 429, 503),
    },
)
async def post_webhook(request: Request) -> Response:
    """
    ANNOTATION_CREATED and _UPDATED are samples, once each however often they come; DELETED forgets.

    Of an annotation with one choice. What else happens in a project is taken and ignored.
    """
    service = service_of(request)
    model = service.loaded()
    event = await body.json_as(request, WebhookIn)
    return answer({"done": await take(service, model, event, caller_of(request))})


@router.post(
    "/train",
    summary="Label Studio: the older request to train",
    responses={200: {"model": WebhookOut}, **openapi.problems(400, 408, 413)},
)
async def post_train(request: Request) -> Response:
    """Nothing is to be done: each annotation is learnt as it is made."""
    await request.body()
    return answer({"done": []})


def _version(number: int) -> str:
    return f"everlens-{number}"


def _fields(config: LabellingConfig, labels_max: int) -> QueryFields:
    if len(config.names) > labels_max:
        message = f"has {len(config.names)} choices; at most {labels_max} are taken"
        raise field_problem("label_config", message)
    try:
        return validated(QueryFields, {"labels": list(config.names) or None, "top": 1})
    except FieldErrors as error:
        raise fields_problem([e | {"field": "label_config"} for e in error.errors[:16]]) from error


async def _predicted(
    service: Service, model: Model, config: LabellingConfig, fields: QueryFields, task: TaskIn
) -> dict[str, Any] | Problem:
    """Return the prediction for a task, or why its picture cannot be used."""
    try:
        image = await picture_of(service, task, config)
        (found,) = await classify(service, model, Questions([Question(image, fields)], many=False))
    except Problem as problem:
        if problem.kind in OF_ONE_PICTURE:
            return problem
        raise
    first = found["predictions"][0]
    choice = {
        "from_name": config.choices,
        "to_name": config.image,
        "type": "choices",
        "value": {"choices": [first["label"]]},
    }
    version = _version(found["version"])
    return {"result": [choice], "score": first["score"], "model_version": version}
