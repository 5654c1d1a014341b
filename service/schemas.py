"""What travels over HTTP, as pydantic models: strict types, and no field that we do not know. ①"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

import pybase64
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from everlens.exhibits import EXHIBITS_MAX
from everlens.records import (
    ID_CHARACTERS_MAX,
    LABEL_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
    clean_name,
)
from service.problems import KINDS, field_error, pydantic_errors

TOP_DEFAULT = 5
TOP_MAX = 1000
WAIT_S_MAX = 300.0

# One red pixel, so that the examples can be sent as they are.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w.+=-]+)*;base64,", re.ASCII | re.IGNORECASE)


# Looked at before a text is normalised, which costs time for every character.
NAME_LENGTH_MAX = 4096
_LENGTH = Field(max_length=NAME_LENGTH_MAX, json_schema_extra={"minLength": 1})

FIELDS_MAX = 64

# The largest integer that every JSON reader keeps exactly.
INTEGER_MAX = 2**53


def _cleaned(field: str, characters_max: int) -> AfterValidator:
    return AfterValidator(lambda text: clean_name(text, field=field, characters_max=characters_max))


Label = Annotated[str, _LENGTH, _cleaned("label", LABEL_CHARACTERS_MAX)]
Text = Annotated[str, _LENGTH, _cleaned("text", TEXT_CHARACTERS_MAX)]
SampleId = Annotated[str, _LENGTH, _cleaned("id", ID_CHARACTERS_MAX)]
Image = Annotated[
    str,
    Field(
        description="JPEG, PNG or WebP as base64 or data URI.",
        examples=[EXAMPLE_IMAGE],
        json_schema_extra={"format": "byte"},
    ),
]
Share = Annotated[float, Field(ge=0, le=1)]


def _without_repeats(labels: list[str]) -> list[str]:
    if not labels:
        raise ValueError("labels is empty; leave it out to ask for all learnt classes")
    if len(set(labels)) < len(labels):
        repeated = next(label for label, count in Counter(labels).items() if count > 1)
        raise ValueError(f"labels repeats {repeated!r}; name each once")
    return labels


class Strict(BaseModel):
    """A shape of ours: the types as they are said, and nothing beside them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SampleFields(Strict):
    """What is said about a labelled picture."""

    label: Label = Field(description="Name of the class, as people write it.", examples=["heron"])
    id: SampleId | None = Field(
        None, description="Makes repeats harmless: the same id and body is accepted once."
    )
    text: Text | None = Field(None, description="A caption to learn from instead of the label.")


class SampleIn(SampleFields):
    """One labelled picture."""

    image: Image


class QueryFields(Strict):
    """What is asked about a picture."""

    labels: Annotated[list[Label], AfterValidator(_without_repeats)] | None = Field(
        None, description="The candidates; left out, all learnt classes.", examples=[["heron"]]
    )
    top: int = Field(TOP_DEFAULT, ge=1, le=TOP_MAX, description="How many lines to answer.")
    version: int | None = Field(
        None,
        ge=0,
        le=INTEGER_MAX,
        description="0 for the frozen base model, or a recent version; else the newest.",
    )
    wait_for: (
        Annotated[str, Field(max_length=NAME_LENGTH_MAX)]
        | Annotated[int, Field(le=INTEGER_MAX)]
        | None
    ) = Field(None, description="Id or seq of a sample: answer when it was learnt.")
    wait_s: float | None = Field(
        None, gt=0, le=WAIT_S_MAX, allow_inf_nan=False, description="How long `wait_for` waits."
    )
    explain: bool = Field(
        False, description="Say why: each expert's share, and the nearest labelled pictures."
    )


class QueryIn(QueryFields):
    """One picture to classify."""

    image: Image


class ReceiptOut(Strict):
    """An accepted sample."""

    id: str
    seq: int = Field(ge=1)
    status: Literal["accepted"]


class ForgettingOut(Strict):
    """What a forgetting did, and in plain words what that means."""

    label: str | None = Field(description="The class; null where one sample was forgotten.")
    samples: int = Field(ge=0, description="Labelled pictures that are unlearnt.")
    rejections: int = Field(ge=0, description="Pictures that were said not to be of the class.")
    exemplars: int = Field(ge=0, description="Of them, those that were kept for replay.")
    held_out: int | None = Field(
        None, ge=0, description="Samples of the other classes that both versions were asked about."
    )
    before: Share | None = Field(None, description="Accuracy on those with what is forgotten.")
    after: Share | None = Field(None, description="Accuracy on those without.")
    unlearnt: list[str] = Field(description="Where nothing of it is left.")
    stays: list[str] = Field(description="Where something of it is, and how to be rid of that.")


class SampleOut(Strict):
    """What became of it: accepted, learnt (by which version), dead (why), or forgotten again."""

    id: str
    seq: int = Field(ge=1)
    status: Literal["accepted", "learnt", "dead", "forgotten"]
    version: int | None = Field(
        None, ge=1, description="The first that has learnt it, or is without it again."
    )
    reason: str | None = Field(None, description="Why it could not be learnt.")
    report: ForgettingOut | None = Field(None, description="What a forgetting did.")


class HoldIn(Strict):
    """Why learning is to wait."""

    reason: Text | None = Field(None, description="For people; shown by GET /learning.")


class HeldOut(Strict):
    """Whether somebody holds learning, and why."""

    held: str | None


class PinOut(Strict):
    """The version that answers in place of the newest, if one is pinned."""

    pinned: int | None


class PredictionOut(Strict):
    """One line of an answer."""

    label: str
    score: Share
    samples: int = Field(ge=0, description="Labels of this class that were learnt.")


class SharesOut(Strict):
    """
    One line's score as the sum of each expert's share in it.

    If all that an expert says of this name were one per cent more, the score would rise, before all
    scores are made to sum to one: an expert's share is its part of the rise that all would make.
    """

    label: str
    zero_shot: Share = Field(description="Of the frozen model and the name alone.")
    evidence: Share = Field(description="Of the labelled pictures, through the frozen model.")
    adapter: Share | None = Field(
        description="Of the labelled pictures, through the tuned model; null where none is tuned."
    )


class ExemplarOut(Strict):
    """A labelled picture that the learner keeps, and how near it is."""

    sample_id: str
    label: str
    similarity: float = Field(ge=-1, le=1, description="Cosine of the frozen features.")
    image: str = Field(description="As a data URI, at the model's size.")


class ExplanationOut(Strict):
    """Why: what each expert has in each line, and the nearest of the pictures that are kept."""

    experts: list[SharesOut] = Field(description="In the order of the predictions.")
    exemplars: list[ExemplarOut] | None = Field(
        max_length=EXHIBITS_MAX,
        description="The nearest first, as the learner keeps them now; null where it is silent, or "
        "the key may not `read`.",
    )
    note: str | None = Field(description="Why there are none.")


class AnswerOut(Strict):
    """The most probable names, the best first, and what the answer rests on."""

    predictions: list[PredictionOut]
    known: Share | None = Field(
        description="Probability that the picture is of any learnt class among the candidates; "
        "null before the first is learnt. Without `labels`, near 0 means none of all learnt."
    )
    version: int = Field(ge=0)
    learned_through: int = Field(ge=0)
    model: str
    prediction_id: str
    explanation: ExplanationOut | None = Field(None, description="Where `explain` asked for it.")


class ClassOut(Strict):
    """One learnt class; null is what is not known yet."""

    label: str
    samples: int = Field(ge=0)
    index: int = Field(ge=0, description="Its place in the order of first samples.")
    recall: Share | None = Field(description="Of served answers before the label came, lately.")
    forgetting: float | None = Field(description="How far that is below the class's best.")
    weight: float | None = Field(ge=0, description="Of its loss in tuning; 1 is the mean.")
    zero_shot: Share | None = Field(description="Recall of the frozen model alone.")
    evidence: Share | None = Field(description="Recall of the closed form alone.")
    adapter: Share | None = Field(description="Recall of the adapter alone.")


class OneClassOut(ClassOut):
    """One learnt class, what the text tower reads for it, and by which version."""

    prompts: list[str] = Field(description="The name as the text tower reads it; averaged.")
    version: int = Field(ge=0)


class ClassesOut(Strict):
    """The learnt classes, and by which version."""

    classes: list[ClassOut]
    total: int = Field(ge=0, description="How many fit the search, on all pages.")
    version: int = Field(ge=0)


class GateOut(Strict):
    """What held-out samples said of an adapter: its mean probability of the right names."""

    published: bool
    held_out: int = Field(ge=0)
    before: Share | None = Field(None, description="Left out where too few were held out.")
    after: Share | None = None
    error: float | None = Field(None, ge=0, description="Standard error of the difference.")


class VersionOut(Strict):
    """One version of the lineage."""

    version: int = Field(ge=0)
    published_at: int | None = Field(description="Seconds since 1970; null for version 0.")
    learned_through: int = Field(ge=0)
    samples: int = Field(ge=0)
    classes: int = Field(ge=0)
    parent: str = Field(description="Digest of the version before; empty for the first.")
    adapter: str = Field(description="Digest of its adapter; empty without one.")
    digest: str = Field(description="SHA-256 of its manifest; empty for version 0.")
    gate: GateOut | None = Field(description="Null where no adapter was at stake.")
    restored_from: int | None = Field(description="The version that an activation went back to.")


class VersionsOut(Strict):
    """The version that serves here, and the published ones, the newest first."""

    current: int = Field(ge=0)
    versions: list[VersionOut]


class BacklogOut(Strict):
    """What waits to be learnt."""

    entries: int = Field(ge=0)
    bytes: int = Field(ge=0)


class RefusedVersionOut(Strict):
    """A published version that this service could not use."""

    version: int | None = Field(description="Null where what names the version cannot be read.")
    reason: str
    tries: int


class LearningOut(Strict):
    """How far learning is."""

    version: int = Field(ge=0)
    learned_through: int = Field(ge=0)
    accepted_through: int = Field(ge=0)
    backlog: BacklogOut
    paused: str | None = Field(description="Why the learner takes no samples: it has stopped.")
    held: str | None = Field(description="Why somebody holds learning; samples are taken.")
    pinned: int | None = Field(description="The version that answers in place of the newest.")
    learner: dict[str, Any] = Field(description="The learner's own figures after its last batch.")
    refused_versions: list[RefusedVersionOut]


class RootOut(Strict):
    """Where everything is."""

    name: str
    docs: str
    routes: list[str]


class AliveOut(Strict):
    """The process lives."""

    status: Literal["alive"]


class ReadyOut(Strict):
    """The service may be asked."""

    status: Literal["ready"]
    model: str
    version: int = Field(ge=0)
    learned_through: int = Field(ge=0)
    stale: bool = Field(
        description="The version was kept on this machine: the log was not reached since the start."
    )


class FieldErrorOut(Strict):
    """One bad field."""

    field: str
    message: str
    index: int | None = Field(None, ge=0, description="Of the item, when a list was sent.")


class ProblemOut(Strict):
    """An RFC 9457 problem document."""

    type: Literal[tuple(f"/problems/{kind}" for kind in KINDS)]  # type: ignore[valid-type]
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="A sentence that says what to do.")
    instance: str = Field(description="The path that was asked; empty when the head was not read.")
    errors: list[FieldErrorOut] = Field([], description="The bad fields; only with 415 and 422.")
    error: str = Field("", description="The detail again, for clients of KServe and Hugging Face.")
    message: str = Field("", description="Likewise, for clients of OpenAI.")


Model = TypeVar("Model", bound=BaseModel)


class FieldErrors(Exception):
    """Bad fields of one item, as elements of a problem's `errors`."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__()
        self.errors = errors


def validated(
    model: type[Model], fields: Any, *, index: int | None = None, texts: bool = False
) -> Model:
    """
    Return the fields as a model; with `texts`, numbers may be written as text (forms, queries).

    Raises:
        FieldErrors: with `index` in each, when the item is one of a list.
    """
    if isinstance(fields, dict) and len(fields) > FIELDS_MAX:
        # Each unknown one would be complained about.
        message = f"has {len(fields)} fields; there are {len(model.model_fields)}"
        raise FieldErrors([field_error("body", message, index)])
    try:
        return model.model_validate(fields, strict=not texts)
    except ValidationError as error:
        raise FieldErrors(pydantic_errors(error, index)) from error


def image_bytes(image: str) -> bytes:
    """
    Return the bytes of a base64 text or data URI.

    Raises:
        ValueError: with a sentence that says what is wrong.
    """
    head = _DATA_URI.match(image)
    if head is None and image[:5].lower() == "data:":
        raise ValueError("the data URI is not base64; write data:image/jpeg;base64,…")
    text = image[head.end() :] if head is not None else image
    # Tens of times faster than the standard library, and takes nothing that it would not; what is
    # refused here may have line breaks, or is looked at again for the reason.
    with suppress(ValueError):
        return pybase64.b64decode(text, validate=True)
    try:
        return base64.b64decode("".join(text.split()).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(
            f"image is not base64 ({error}); send the picture's bytes as standard base64"
        ) from error
