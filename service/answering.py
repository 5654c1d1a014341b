"""A request with pictures to classify → ranked names, by a version that knows enough. ①⑨"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, replace
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from everlens.errors import ImageError
from everlens.model.snapshot import Snapshot
from everlens.pixels import Pixels
from everlens.records import as_written
from everlens.settings import Settings
from service import body
from service.ahead import Seen, seen_by_now
from service.auth import Caller
from service.batcher import Answer, Query
from service.context import Model, Service
from service.explaining import EXPLAINED_MAX, explanations
from service.problems import Problem, field_error, field_problem, fields_problem, image_problem
from service.schemas import FieldErrors, QueryFields, QueryIn, image_bytes, validated

TAKEN = (
    "the picture itself (image/jpeg, image/png, image/webp), application/json "
    "or multipart/form-data"
)
_ERRORS_MAX = 16
_FORM_FIELDS_MAX = 16


@dataclass(frozen=True, slots=True)
class Question:
    """One picture as the client sent it, and what is asked about it."""

    image: bytes
    fields: QueryFields


@dataclass(frozen=True, slots=True)
class Questions:
    """What one request asks; `many` when it was a list and wants a list back."""

    items: list[Question]
    many: bool

    @property
    def wait(self) -> bool:
        """Whether one of them waits for a sample to be learnt."""
        return any(question.fields.wait_for is not None for question in self.items)


async def read_questions(request: Request, settings: Settings) -> Questions:
    """
    Return the questions of a request in its order.

    Raises:
        Problem: the reason why the whole request is refused.
    """
    kind = body.media_type(request)
    try:
        if kind in body.RAW:
            given = {name: request.query_params.getlist(name) for name in request.query_params}
            fields = _from_texts(given, settings.max_labels_per_request)
            questions = Questions([Question(await request.body(), fields)], many=False)
        elif kind == body.JSON:
            body.without_parameters(request)
            questions = _from_json(body.parse_json(await request.body()), settings)
        elif kind == body.FORM:
            body.without_parameters(request)
            fields_max = settings.max_labels_per_request + _FORM_FIELDS_MAX
            async with body.form_of(request, files_max=1, fields_max=fields_max) as form:
                questions = Questions([await _from_form(form, settings)], many=False)
        else:
            raise body.unsupported(request, TAKEN)
    except FieldErrors as error:
        raise fields_problem(error.errors[:_ERRORS_MAX]) from error
    if sum(question.fields.explain for question in questions.items) > EXPLAINED_MAX:
        raise field_problem("explain", f"explain at most {EXPLAINED_MAX} pictures at once")
    return questions


def _from_json(value: Any, settings: Settings) -> Questions:
    many = isinstance(value, list)
    values = value if many else [value]
    most = min(settings.max_queries_per_request, settings.max_queued_queries)
    if not 1 <= len(values) <= most:
        raise field_problem("body", f"send 1 to {most} pictures, not {len(values)}")
    items, errors = [], []
    for place, one in enumerate(values):
        index = place if many else None
        if isinstance(one, dict):
            _check_count(one.get("labels"), settings.max_labels_per_request, index)
        try:
            query = validated(QueryIn, one, index=index)
            items.append(Question(image_bytes(query.image), query))
        except FieldErrors as error:
            errors += error.errors
        except ValueError as error:
            errors.append(field_error("image", str(error), index))
    if errors:
        raise FieldErrors(errors)
    return Questions(items, many)


async def _from_form(form: FormData, settings: Settings) -> Question:
    files = form.getlist("image")
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        raise field_problem("image", "send one picture as a file part named image")
    texts: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if name == "image":
            continue
        if not isinstance(value, str):
            raise field_problem(name, "is a file part; send it as a plain field")
        texts.setdefault(name, []).append(value)
    fields = _from_texts(texts, settings.max_labels_per_request)
    return Question(await files[0].read(), fields)


def _from_texts(given: dict[str, list[str]], labels_max: int) -> QueryFields:
    """Return the fields of a query string or a form, where numbers are written as text."""
    _check_count(given.get("labels"), labels_max)
    fields: dict[str, Any] = dict(given)
    for name, values in given.items():
        if name != "labels":
            if len(values) > 1:
                raise field_problem(name, "comes more than once; send it once")
            fields[name] = values[0]
    return validated(QueryFields, fields, texts=True)


def _check_count(labels: Any, labels_max: int, index: int | None = None) -> None:
    """Return when there are not too many names; looked at before each of them is."""
    if isinstance(labels, list) and len(labels) > labels_max:
        raise field_problem(
            "labels", f"has {len(labels)} names; send at most {labels_max}", index=index
        )


async def classify(
    service: Service, model: Model, questions: Questions, *, shows: bool = False
) -> list[dict[str, Any]]:
    """
    Return the answers in the order of the questions.

    Args:
        service, model: who answers.
        questions: of one request.
        shows: whether an explanation may show the pictures that others labelled.

    Raises:
        Problem: one of them cannot be answered; then none is.
    """
    await _check_names(model, questions)
    with model.batcher.decoding():
        pixels = await _decoded(service, model, questions)
    seen = [
        await _wait_learned(service, model, question.fields, picture)
        for question, picture in zip(questions.items, pixels, strict=True)
    ]
    queries = [
        replace(_query(model, question.fields, picture), seen=before)
        for question, picture, before in zip(questions.items, pixels, seen, strict=True)
    ]
    answers = await model.batcher.ask(queries)
    if not all(answer.ranked for answer in answers):  # the last class was forgotten meanwhile
        raise _nothing_learnt()
    reasons = await explanations(service.asking if shows else None, answers)
    return [
        _rendered(answer, model.backbone.name, reason)
        for answer, reason in zip(answers, reasons, strict=True)
    ]


async def answered(
    service: Service, model: Model, questions: Questions, caller: Caller
) -> list[dict[str, Any]]:
    """Return the answers, kept for whoever corrects them; raises as `classify` does."""
    # The pictures are what `GET /samples/{id}/image` shows, and need what that needs.
    answers = await classify(service, model, questions, shows="read" in caller.scopes)
    for question, answer in zip(questions.items, answers, strict=True):
        service.predictions.keep(caller.id, question.image, answer)
    return answers


async def _check_names(model: Model, questions: Questions) -> None:
    for index, question in enumerate(questions.items):
        labels = question.fields.labels
        unfit = await model.first_unfit(labels) if labels else None
        if unfit is not None and labels is not None:
            raise field_problem(
                f"labels.{unfit}",
                "is longer than what the text tower reads; shorten it",
                index=index if questions.many else None,
            )


async def _decoded(service: Service, model: Model, questions: Questions) -> list[Pixels]:
    outcomes = await asyncio.gather(
        *(
            service.decoding.read(question.image, model.backbone.pixels)
            for question in questions.items
        ),
        return_exceptions=True,
    )
    pixels, refused = [], []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ImageError):
            refused.append((index if questions.many else None, outcome))
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            pixels.append(outcome)
    if refused:
        errors = [field_error("image", str(error), index) for index, error in refused]
        raise image_problem(refused[0][1], errors[:_ERRORS_MAX])
    return pixels


async def _wait_learned(
    service: Service, model: Model, fields: QueryFields, pixels: Pixels
) -> Seen | None:
    """Return when the serving version has learnt what the question waits for; and what was seen."""
    if fields.wait_for is None:
        return None
    seq = await _seq_of(service, fields.wait_for)
    serving = model.serving
    waits = serving.current.learned_through < seq
    if waits and serving.waiting >= service.settings.max_queued_queries:
        # Each holds a connection, and the process has only so many.
        raise Problem("busy", "too many queries wait for their samples; ask again", retry_after_s=5)
    looking = model.ahead.look(pixels) if waits else None
    wait_s = fields.wait_s or service.settings.wait_s
    if not await serving.wait_learned(seq, wait_s):
        if serving.stopped:
            raise Problem("not-ready", "the service is stopping; ask again", retry_after_s=1)
        raise Problem(
            "not-learnt-in-time",
            f"entry {seq} was not learnt within {wait_s:g} s (learnt through "
            f"{serving.current.learned_through}); ask again, or see /learning",
        )
    reason = (await service.log.state_of(seq)).dead_reason
    if reason is not None:
        raise Problem("sample-dead", f"entry {seq} could not be learnt: {reason}")
    return seen_by_now(looking)


async def _seq_of(service: Service, wait_for: str | int) -> int:
    """Return the number of an accepted sample; digits are an id first, then a number."""
    if isinstance(wait_for, str):
        seq = await service.log.seq_of(as_written(wait_for))
        if seq is not None:
            return seq
        if not (wait_for.isascii() and wait_for.isdigit() and len(wait_for) < 16):
            raise Problem("unknown-sample", "wait_for names no accepted sample; check the id")
        wait_for = int(wait_for)
    last = (await service.log.backlog()).seq
    if not 0 < wait_for <= last:
        raise Problem(
            "unknown-sample", f"wait_for is {wait_for}, but the last accepted entry is {last}"
        )
    return wait_for


def _query(model: Model, fields: QueryFields, pixels: Pixels) -> Query:
    serving = model.serving
    snapshot: Snapshot | None = None
    if fields.version is not None:
        snapshot = serving.find(fields.version)
        if snapshot is None:
            kept = ", ".join(map(str, serving.versions))
            raise Problem(
                "unknown-version", f"version {fields.version} is not kept; ask for one of {kept}"
            )
    # Version 0 has learnt no name of its own: it ranks those of the current version.
    candidates = snapshot if snapshot is not None and snapshot.version else serving.current
    if fields.labels is None and not candidates.learnt:
        raise _nothing_learnt()
    labels = None if fields.labels is None else tuple(fields.labels)
    return Query(pixels, labels, fields.top, snapshot, fields.explain)


def _nothing_learnt() -> Problem:
    return Problem(
        "nothing-learnt",
        "no class is learnt yet; name candidates with `labels`, or POST a labelled picture "
        "to /samples first",
    )


def _rendered(answer: Answer, model: str, reason: dict[str, Any] | None) -> dict[str, Any]:
    about = {
        "predictions": [
            {"label": line.label, "score": round(line.score, 6), "samples": line.samples}
            for line in answer.ranked
        ],
        "known": None if answer.known is None else round(answer.known, 6),
        "version": answer.version,
        "learned_through": answer.learned_through,
        "model": model,
        "prediction_id": uuid.uuid4().hex,
    }
    return about if reason is None else about | {"explanation": reason}
