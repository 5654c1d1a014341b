"""A request with labelled pictures → samples in the log, all or none. ①②"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from everlens import tracing
from everlens.bus.admission import Admittable
from everlens.errors import ImageError
from everlens.pixels import Pixels, encode_pixels
from everlens.records import EntryKind, Receipt, Rejection, Sample
from everlens.settings import Settings
from everlens.wire import encode_rejection, encode_sample
from service import body
from service.auth import Caller
from service.context import Model, Service
from service.problems import field_error, field_problem, fields_problem, image_problem
from service.schemas import FieldErrors, SampleFields, SampleIn, image_bytes, validated

TAKEN = "application/json, application/x-ndjson or multipart/form-data"
_ERRORS_MAX = 16
_FORM_FIELDS = {"image", "label", "id", "text"}


@dataclass(frozen=True, slots=True)
class Offer:
    """One labelled picture as the client sent it; without an id it cannot be repeated."""

    image: bytes
    label: str
    id: str | None
    text: str | None
    refused: bool = False  # the label is what the picture is not


@dataclass(frozen=True, slots=True)
class Offers:
    """What one request offers; `many` when it was a list and wants a list back."""

    items: list[Offer]
    many: bool


async def read_offers(request: Request, settings: Settings) -> Offers:
    """
    Return the samples of a request in its order.

    Raises:
        Problem: the first reason why the whole request is refused.
    """
    body.without_parameters(request)
    kind = body.media_type(request)
    if kind == body.JSON:
        value = body.parse_json(await request.body())
        many = isinstance(value, list)
        items = _offers(value if many else [value], settings, many=many)
    elif kind in body.NDJSON:
        many = True
        values_max = settings.max_samples_per_request
        values = body.parse_ndjson(await request.body(), values_max=values_max)
        items = _offers(values, settings, many=many)
    elif kind == body.FORM:
        fields_max = 3 * settings.max_samples_per_request
        async with body.form_of(
            request, files_max=settings.max_samples_per_request, fields_max=fields_max
        ) as form:
            items = await _form_offers(form)
        many = len(items) > 1
    else:
        raise body.unsupported(request, TAKEN)
    return _with_header_id(Offers(items, many), request.headers.get("idempotency-key"))


def _offers(values: list[Any], settings: Settings, *, many: bool) -> list[Offer]:
    if not 1 <= len(values) <= settings.max_samples_per_request:
        raise field_problem(
            "body", f"send 1 to {settings.max_samples_per_request} samples, not {len(values)}"
        )
    items, errors = [], []
    for index, value in enumerate(values):
        try:
            items.append(_offer(value, index if many else None))
        except FieldErrors as error:
            errors += error.errors
    if errors:
        raise fields_problem(errors[:_ERRORS_MAX])
    return items


def _offer(value: Any, index: int | None) -> Offer:
    sample = validated(SampleIn, value, index=index)
    try:
        image = image_bytes(sample.image)
    except ValueError as error:
        raise FieldErrors([field_error("image", str(error), index)]) from error
    return Offer(image, sample.label, sample.id, sample.text)


async def _form_offers(form: FormData) -> list[Offer]:
    unknown = sorted(set(form) - _FORM_FIELDS)
    if unknown:
        raise fields_problem([field_error(name, "unknown field; remove it") for name in unknown])
    files = form.getlist("image")
    if not files or not all(isinstance(file, UploadFile) for file in files):
        raise field_problem("image", "send at least one picture as a file part named image")
    pictures = [await file.read() for file in files if isinstance(file, UploadFile)]
    columns = {
        "label": _column(form, "label", len(pictures), shared=True),
        "text": _column(form, "text", len(pictures), shared=True),
        "id": _column(form, "id", len(pictures), shared=False),
    }
    items, errors = [], []
    for index, picture in enumerate(pictures):
        given = {name: column[index] for name, column in columns.items() if column}
        try:
            fields = validated(SampleFields, given, index=index if len(pictures) > 1 else None)
            items.append(Offer(picture, fields.label, fields.id, fields.text))
        except FieldErrors as error:
            errors += error.errors
    if errors:
        raise fields_problem(errors[:_ERRORS_MAX])
    return items


def _column(form: FormData, name: str, count: int, *, shared: bool) -> list[str]:
    """Return one value for each picture, or none at all."""
    values = [value for value in form.getlist(name) if isinstance(value, str)]
    if len(values) != len(form.getlist(name)):
        raise field_problem(name, "is a file part; send it as a plain field")
    if shared and len(values) == 1:
        return values * count
    if values and len(values) != count:
        raise field_problem(
            name, f"comes {len(values)} times with {count} pictures; send one for each"
        )
    return values


def _with_header_id(offers: Offers, key: str | None) -> Offers:
    """The header `Idempotency-Key` is the id of a single sample."""
    if key is None:
        return offers
    if offers.many:
        raise field_problem("Idempotency-Key", "is for a single sample; give each item its own id")
    if not key.isascii():
        # A header has no encoding, so two ways to read the same id.
        raise field_problem("Idempotency-Key", "is ASCII only; put other ids into the body")
    offer = offers.items[0]
    try:
        fields = validated(SampleFields, {"label": offer.label, "id": key})
    except FieldErrors as error:
        raise fields_problem([e | {"field": "Idempotency-Key"} for e in error.errors]) from error
    if offer.id not in {None, fields.id}:
        raise field_problem("id", "differs from the header Idempotency-Key; send one of them")
    return Offers([replace(offer, id=fields.id)], many=False)


async def submit(service: Service, model: Model, offers: Offers, caller: Caller) -> list[Receipt]:
    """
    Return a receipt for each offer; they are on disk then.

    Raises:
        Problem, Refused, LogUnavailable: nothing was accepted, or (only the last) it is unknown.
    """
    return await admit(service, await admittable(service, model, offers, caller))


async def admittable(
    service: Service, model: Model, offers: Offers, caller: Caller
) -> list[Admittable]:
    """
    Return the offers as they go to the log.

    Raises:
        Problem: the first reason why they cannot.
    """
    unfit = await model.first_unfit([offer.label for offer in offers.items])
    if unfit is not None:
        message = "is longer than what the text tower reads; shorten it"
        field = "not_label" if offers.items[unfit].refused else "label"
        raise field_problem(field, message, index=unfit if offers.many else None)
    images = [offer.image for offer in offers.items]

    def made(begun: int, index: int, pixels: Pixels) -> Admittable:
        return prepared(offers.items[begun + index], pixels, caller)

    outcomes: list[Admittable | ImageError] = []
    # One turn after the other, so that a long list leaves the pool's places to other requests.
    while len(outcomes) < len(images) and len(_refused(outcomes)) < _ERRORS_MAX:
        outcomes += await service.decoding.make(
            images[len(outcomes) :], model.backbone.pixels, partial(made, len(outcomes))
        )
    if refused := _refused(outcomes)[:_ERRORS_MAX]:
        errors = [
            field_error("image", str(error), index if offers.many else None)
            for index, error in refused
        ]
        raise image_problem(refused[0][1], errors)
    return [outcome for outcome in outcomes if not isinstance(outcome, ImageError)]


async def admit(service: Service, samples: list[Admittable]) -> list[Receipt]:
    """Return a receipt for each sample; raises as `submit` does, but no Problem."""
    with service.metrics.admission_seconds.time():
        receipts = await service.admission.admit(samples)
    service.metrics.accepted.inc(_new(receipts))
    return receipts


def _refused(outcomes: list[Admittable | ImageError]) -> list[tuple[int, ImageError]]:
    return [(k, each) for k, each in enumerate(outcomes) if isinstance(each, ImageError)]


def _new(receipts: Iterable[Receipt]) -> int:
    return sum(not receipt.repeated for receipt in receipts)


def prepared(offer: Offer, pixels: Pixels, caller: Caller) -> Admittable:
    """Return the sample as it goes to the log, with our own JPEG at the model's size."""
    # What the client sent, not what we make of it: the digest outlives another base model.
    digest = hashlib.sha256(orjson.dumps([offer.label, offer.text]))
    digest.update(offer.image)
    sample_id = offer.id or uuid.uuid4().hex
    image = encode_pixels(pixels)
    if offer.refused:
        payload = encode_rejection(Rejection(sample_id, offer.label, image, tracing.current()))
        # No label of its own: to say that something is no heron makes no class of herons.
        return Admittable(
            sample_id, digest.hexdigest(), payload, tenant=caller.id, kind=EntryKind.REJECT
        )
    return Admittable(
        id=sample_id,
        digest=digest.hexdigest(),
        payload=encode_sample(Sample(sample_id, offer.label, image, offer.text, tracing.current())),
        label=offer.label,
        tenant=caller.id,
        may_be_new="classes" in caller.scopes,
    )
