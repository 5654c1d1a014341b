"""What travels over HTTP, as pydantic models: strict types, and no field that we do not know. ①"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from everlens.records import (
    ID_CHARACTERS_MAX,
    LABEL_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
    clean_name,
)
from service.problems import pydantic_errors

TOP_DEFAULT = 5
TOP_MAX = 1000
WAIT_S_MAX = 300.0

# One red pixel, so that the examples can be sent as they are.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w.+=-]+)*;base64,", re.ASCII | re.IGNORECASE)


# Looked at before a text is normalised, which costs time for every character.
_LENGTH = Field(max_length=4096)


def _cleaned(field: str, characters_max: int) -> AfterValidator:
    return AfterValidator(lambda text: clean_name(text, field=field, characters_max=characters_max))


Label = Annotated[str, _LENGTH, _cleaned("label", LABEL_CHARACTERS_MAX)]
Text = Annotated[str, _LENGTH, _cleaned("text", TEXT_CHARACTERS_MAX)]
SampleId = Annotated[str, _LENGTH, _cleaned("id", ID_CHARACTERS_MAX)]


def _without_repeats(labels: list[str]) -> list[str]:
    if not labels:
        raise ValueError("labels is empty; leave it out to ask for all learnt classes")
    if len(set(labels)) < len(labels):
        repeated = next(label for label, count in Counter(labels).items() if count > 1)
        raise ValueError(f"labels repeats {repeated!r}; name each once")
    return labels


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SampleFields(_Strict):
    """What is said about a labelled picture."""

    label: Label = Field(description="Name of the class, as people write it.", examples=["heron"])
    id: SampleId | None = Field(
        None, description="Makes repeats harmless: the same id and body is accepted once."
    )
    text: Text | None = Field(None, description="A caption to learn from instead of the label.")


class SampleIn(SampleFields):
    """One labelled picture."""

    image: str = Field(
        description="JPEG, PNG or WebP as base64 or data URI.", examples=[EXAMPLE_IMAGE]
    )


class QueryFields(_Strict):
    """What is asked about a picture."""

    labels: Annotated[list[Label], AfterValidator(_without_repeats)] | None = Field(
        None, description="The candidates; left out, all learnt classes.", examples=[["heron"]]
    )
    top: int = Field(TOP_DEFAULT, ge=1, le=TOP_MAX, description="How many lines to answer.")
    version: int | None = Field(
        None, ge=0, description="0 for the frozen base model, or a recent version; else the newest."
    )
    wait_for: str | int | None = Field(
        None, description="Id or seq of a sample: answer when it was learnt."
    )
    wait_s: float | None = Field(
        None, gt=0, le=WAIT_S_MAX, allow_inf_nan=False, description="How long `wait_for` waits."
    )


class QueryIn(QueryFields):
    """One picture to classify."""

    image: str = Field(
        description="JPEG, PNG or WebP as base64 or data URI.", examples=[EXAMPLE_IMAGE]
    )


class ReceiptOut(_Strict):
    """An accepted sample."""

    id: str
    seq: int
    status: str = Field(examples=["accepted"])


class SampleOut(ReceiptOut):
    """What became of a sample: accepted, learnt (by which version) or dead (why)."""

    version: int | None = None
    reason: str | None = None


class PinOut(_Strict):
    """The version that answers in place of the newest, if one is pinned."""

    pinned: int | None


class PredictionOut(_Strict):
    """One line of an answer."""

    label: str
    score: float
    samples: int


class AnswerOut(_Strict):
    """The most probable names, the best first, and what the answer rests on."""

    predictions: list[PredictionOut]
    known: float | None = Field(
        description="Probability that the picture is of any learnt class among the candidates; "
        "null before the first is learnt. Without `labels`, near 0 means none of all learnt."
    )
    version: int
    learned_through: int
    model: str
    prediction_id: str


class ProblemOut(BaseModel):
    """An RFC 9457 problem document."""

    type: str = Field(examples=["/problems/invalid-fields"])
    title: str
    status: int
    detail: str = Field(description="A sentence that says what to do.")
    instance: str
    errors: list[dict[str, Any]] | None = None


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
    try:
        return base64.b64decode("".join(text.split()).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(
            f"image is not base64 ({error}); send the picture's bytes as standard base64"
        ) from error
