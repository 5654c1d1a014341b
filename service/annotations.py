"""
An annotation of Label Studio is a sample: changed, it is forgotten and sent anew; deleted, forgotten.

Its samples are named after it, with a number that counts its changes; the last one is found by
asking for one after the other, so that nothing is remembered here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from everlens.errors import IdConflict
from everlens.records import Receipt
from service.auth import Caller
from service.context import Model, Service
from service.forgetting import forget_sample, is_known
from service.label_studio_schemas import AnnotationIn, ProjectIn, TaskIn, WebhookIn
from service.labelling_config import LabellingConfig, read_config
from service.problems import Problem, field_problem, fields_problem
from service.schemas import FieldErrors, SampleFields, validated
from service.submission import Offer, Offers, submit
from service.task_pictures import NoPicture

# What one picture may be refused for, while the others are taken.
OF_ONE_PICTURE = {"damaged-image", "unsupported-image", "invalid-fields"}

log = logging.getLogger(__name__)


async def take(
    service: Service, model: Model, event: WebhookIn, caller: Caller
) -> list[dict[str, Any]]:
    """
    Return what came of each annotation that an event tells of.

    A picture that cannot be used is refused alone, and logged: Label Studio looks at no answer.

    Raises:
        Problem, Refused, LogUnavailable: the event cannot be read, or nothing is taken now.
    """
    done = []
    for annotation in _listed(event.annotations or event.annotation):
        if event.action in {"ANNOTATIONS_DELETED", "ANNOTATION_DELETED"}:
            outcome = await _forgotten(service, _name(event, annotation), caller)
        elif event.action in {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"}:
            outcome = await _learnt(service, model, event, annotation, caller)
        else:
            continue
        done.append({"annotation": annotation.id} | outcome)
    return done


async def picture_of(service: Service, task: TaskIn, config: LabellingConfig) -> bytes:
    """
    Return the picture of a task.

    Raises:
        Problem: 422, it has none that may be had.
    """
    try:
        return await service.task_pictures.read(task.data.get(config.field))
    except NoPicture as error:
        raise field_problem(f"data.{config.field}", str(error)) from error


async def _learnt(
    service: Service, model: Model, event: WebhookIn, annotation: AnnotationIn, caller: Caller
) -> dict[str, Any]:
    name, project = _name(event, annotation), _project(event)
    config = read_config(project.label_config or "", "project.label_config")
    label = None if annotation.was_cancelled else _label(annotation.result or [], config)
    if label is None:
        return await _forgotten(service, name, caller)
    try:
        image = await picture_of(service, _task(event, annotation), config)
        receipt = await _sent(service, model, name, Offer(image, _clean(label), None, None), caller)
    except Problem as problem:
        if problem.kind not in OF_ONE_PICTURE:
            raise
        log.warning("annotation %d of project %d: %s", annotation.id, project.id, problem)
        return {"status": "refused", "reason": str(problem)}
    return {"status": "accepted", "id": receipt.id, "seq": receipt.seq}


async def _sent(service: Service, model: Model, name: str, offer: Offer, caller: Caller) -> Receipt:
    """
    Accept an annotation as it is now; again, and nothing changed, give the same receipt.

    What it was is forgotten before the new is sent: stopped in between, the next time repairs it.
    """
    change, known = await _last(service, name)

    def offered(change: int) -> Offers:
        once = Offer(offer.image, offer.label, _sample_id(name, change), None)
        return Offers([once], many=False)

    if known:
        try:
            (receipt,) = await submit(service, model, offered(change), caller)
            return receipt
        except IdConflict:
            await forget_sample(service, _sample_id(name, change), caller)
    (receipt,) = await submit(service, model, offered(change + 1), caller)
    return receipt


async def _forgotten(service: Service, name: str, caller: Caller) -> dict[str, Any]:
    change, known = await _last(service, name)
    if not known:
        return {"status": "ignored", "reason": "it makes no single choice, and taught nothing"}
    receipt = await forget_sample(service, _sample_id(name, change), caller)
    return {"status": "forgotten", "id": receipt.id, "seq": receipt.seq}


async def _last(service: Service, name: str) -> tuple[int, bool]:
    """Return how often an annotation was sent, and whether the last sample of it is known."""
    change, seq = 0, None
    while (later := await service.log.seq_of(_sample_id(name, change + 1))) is not None:
        change, seq = change + 1, later
    return change, seq is not None and await is_known(service, seq)


def _sample_id(name: str, change: int) -> str:
    return name if change == 1 else f"{name}.{change}"


def _name(event: WebhookIn, annotation: AnnotationIn) -> str:
    """Return the id of an annotation's first sample, the same for no other annotation."""
    project = _project(event)
    try:
        # Another Label Studio, or one begun anew, counts from 1 as well; its projects have a time.
        made = int(datetime.fromisoformat(project.created_at or "").timestamp())
    except ValueError:
        made = 0
    return f"label-studio-{project.id}.{made}-{annotation.id}"


def _project(event: WebhookIn) -> ProjectIn:
    if event.project is None:
        raise field_problem("project", "is missing; let the webhook send its payload")
    return event.project


def _task(event: WebhookIn, annotation: AnnotationIn) -> TaskIn:
    for task in _listed(event.task):
        if task.id == annotation.task:
            found: TaskIn = task
            return found
    raise field_problem("task", "is missing; let the webhook send its payload")


def _label(result: Sequence[Any], config: LabellingConfig) -> str | None:
    """Return the one choice that was made; None where there is none, or several."""
    made: list[Any] = []
    for region in result:
        if isinstance(region, Mapping) and region.get("from_name") == config.choices:
            value = region.get("value")
            choices = value.get("choices") if isinstance(value, Mapping) else None
            made += choices if isinstance(choices, list) else []
    return made[0] if len(made) == 1 and isinstance(made[0], str) else None


def _clean(label: str) -> str:
    try:
        return validated(SampleFields, {"label": label}).label
    except FieldErrors as error:
        raise fields_problem(error.errors) from error


def _listed(one_or_many: Any) -> list[Any]:
    if one_or_many is None:
        return []
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]
