"""What travels over HTTP about answers that were given: feedback in, kept predictions out. ①"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.schemas import Label, PredictionOut, Share, Strict

PREDICTION_ID_LENGTH_MAX = 64
LISTED_MAX = 100

PredictionId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=PREDICTION_ID_LENGTH_MAX,
        description="Of an answer of POST /classify.",
    ),
]
Order = Literal["newest", "uncertain"]


class LabelIn(Strict):
    """What is in a picture that was asked about."""

    prediction_id: PredictionId
    label: Label = Field(
        description="Name of the right class; or send `not_label`.", examples=["heron"]
    )


class NotLabelIn(Strict):
    """What is not in a picture that was asked about."""

    prediction_id: PredictionId
    not_label: Label = Field(
        description="Name of a class that it is not of; or send `label`.", examples=["heron"]
    )


class KeptPredictionOut(Strict):
    """An answer that is still remembered with its picture."""

    prediction_id: str
    at: float = Field(ge=0, description="Seconds since 1970.")
    version: int = Field(ge=0)
    learned_through: int = Field(ge=0)
    predictions: list[PredictionOut] = Field(description="The first lines of the answer.")
    known: Share | None
    margin: Share | None = Field(
        description="The first line's score less the second's; null where there is only one."
    )
    feedback: str | None = Field(description="Id of the sample that came of it, if any did.")


class KeptPredictionsOut(Strict):
    """Answers that are still remembered here, in the order that was asked for."""

    predictions: list[KeptPredictionOut]
