"""What somebody says of an answer → a sample in the log, once for each prediction. ①②"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import orjson
from starlette.requests import Request

from everlens.errors import IdConflict
from everlens.records import Receipt
from service import body
from service.auth import Caller
from service.context import Model, Service
from service.feedback_schemas import LabelIn, NotLabelIn
from service.predictions import Kept
from service.problems import Problem, field_problem, fields_problem
from service.schemas import FieldErrors, validated
from service.submission import Offer, Offers, admit, admittable

Feedback = LabelIn | NotLabelIn


async def read_feedback(request: Request) -> Feedback:
    """
    Return the feedback of a request.

    Raises:
        Problem: the reason why it is refused.
    """
    body.without_parameters(request)
    if body.media_type(request) != body.JSON:
        raise body.unsupported(request, body.JSON)
    value = body.parse_json(await request.body())
    refuses = isinstance(value, dict) and "not_label" in value
    if refuses and "label" in value:
        raise field_problem("not_label", "comes beside label; send one of them")
    try:
        return validated(NotLabelIn, value) if refuses else validated(LabelIn, value)
    except FieldErrors as error:
        raise fields_problem(error.errors) from error


async def give_feedback(
    service: Service, model: Model, feedback: Feedback, caller: Caller
) -> Receipt:
    """
    Return the receipt of the sample that the feedback is; it is on disk then.

    Whoever may teach and knows the id may correct the prediction: the one who asks and the one who
    corrects often have keys of their own, and nobody guesses an id.

    Raises:
        Problem: the prediction is not kept here, or has other feedback; the refused name is no class.
        Refused, LogUnavailable: nothing was accepted, or (only the last) it is unknown.
    """
    sample_id = f"feedback-{feedback.prediction_id}"
    # Of what was said and not of the picture, which another replica, or we tomorrow, does not have:
    # feedback that is sent again is known everywhere.
    digest = hashlib.sha256(orjson.dumps(feedback.model_dump())).hexdigest()
    kept = service.predictions.find(feedback.prediction_id)
    try:
        if kept is None:
            return await _given_before(service, sample_id, digest)
        refused = isinstance(feedback, NotLabelIn)
        if refused and not await service.log.has_class(_name(feedback)):
            raise Problem(
                "unknown-class",
                "nobody has taught a class of this name, so there is nothing that this could correct; "
                "send the right `label` if you know it",
            )
        offer = Offer(kept.image, _name(feedback), sample_id, None, refused)
        (sample,) = await admittable(service, model, Offers([offer], many=False), caller)
        (receipt,) = await admit(service, [replace(sample, digest=digest)])
    except IdConflict as error:
        raise Problem(
            "id-conflict",
            f"this prediction has other feedback already; DELETE /samples/{sample_id}, then POST "
            "the picture with its right label to /samples",
        ) from error
    kept.feedback = sample_id
    verdict = _verdict(kept, feedback)
    if verdict is not None and not receipt.repeated:
        service.metrics.feedback.labels(verdict).inc()
    return receipt


async def _given_before(service: Service, sample_id: str, digest: str) -> Receipt:
    receipt = await service.log.receipt_of(sample_id, digest)
    if receipt is not None:
        return receipt
    raise Problem(
        "unknown-prediction",
        "this prediction is kept by another replica, or no longer; POST the picture with its label "
        "to /samples",
    )


def _name(feedback: Feedback) -> str:
    return feedback.not_label if isinstance(feedback, NotLabelIn) else feedback.label


def _verdict(kept: Kept, feedback: Feedback) -> str | None:
    """Return what the feedback says of the best line; None where another name was refused."""
    best = kept.lines[0]["label"] == _name(feedback)
    if isinstance(feedback, NotLabelIn):
        return "wrong" if best else None
    return "right" if best else "wrong"
