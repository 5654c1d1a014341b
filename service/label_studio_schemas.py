"""The shapes of Label Studio's ML backend protocol: what of its requests is read, and our answers. ①"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import INTEGER_MAX, Strict

_TASKS_MAX = 1000  # as it asks for at most
_ANNOTATIONS_MAX = 5000  # as it tells of at most

Number = Annotated[int, Field(ge=0, le=INTEGER_MAX)]  # becomes a part of a sample's id


class _Foreign(BaseModel):
    """What Label Studio sends has more in it than we read, and more with each of its versions."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Shape(Strict):
    model_config = ConfigDict(protected_namespaces=())


class SetupIn(_Foreign):
    """A project that wants our predictions; its access token is not looked at."""

    label_schema: str = Field(alias="schema", description="The labelling configuration.")


class TaskIn(_Foreign):
    """Something to be labelled."""

    id: Number | None = None
    data: dict[str, Any]


class PredictIn(_Foreign):
    """Tasks to be predicted."""

    tasks: list[TaskIn] = Field(min_length=1, max_length=_TASKS_MAX)
    label_config: str


class ProjectIn(_Foreign):
    """Whose annotation it is."""

    id: Number
    created_at: str | None = None
    label_config: str | None = None


class AnnotationIn(_Foreign):
    """What somebody said of a task; of one that is deleted, its number alone."""

    id: Number
    task: Number | None = None
    was_cancelled: bool | None = None
    result: list[Any] | None = None


class WebhookIn(_Foreign):
    """Something that happened in a project."""

    action: str
    project: ProjectIn | None = None
    task: TaskIn | list[TaskIn] | None = None
    annotation: AnnotationIn | list[AnnotationIn] | None = None
    annotations: list[AnnotationIn] = Field([], max_length=_ANNOTATIONS_MAX)


class HealthOut(_Shape):
    """It lives."""

    status: Literal["UP"]
    model_class: str


class SetupOut(_Shape):
    """By which version it would predict now."""

    model_version: str


class PredictionOut(_Shape):
    """The choice for one task; empty where its picture cannot be used."""

    result: list[dict[str, Any]]
    score: float = Field(ge=0, le=1)
    model_version: str


class PredictionsOut(_Shape):
    """One prediction for each task, in their order."""

    results: list[PredictionOut]
    model_version: str


class DoneOut(_Shape):
    """What came of one annotation."""

    annotation: int
    status: Literal["accepted", "forgotten", "ignored", "refused"]
    id: str | None = Field(None, description="Of the sample, or of its forgetting.")
    seq: int | None = None
    reason: str | None = Field(None, description="Why it is ignored, or its picture refused.")


class WebhookOut(_Shape):
    """What came of it: nothing, where it says nothing about an annotation."""

    done: list[DoneOut]
