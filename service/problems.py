"""Every answer that is an error: an RFC 9457 problem document with a stable type. ①"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from everlens.errors import (
    BusError,
    EverlensError,
    IdConflict,
    ImageError,
    LearnerSilent,
    LearningPaused,
    LogBehind,
    LogUnavailable,
    NewClass,
    OtherLog,
    QueueFull,
    Refused,
    TooManyClasses,
)

MEDIA_TYPE = "application/problem+json"

# The last part of the type, with status and title. Clients branch on the type: none is renamed.
KINDS: dict[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "bad-json": (400, "The body is not JSON that we read"),
    "no-key": (401, "An API key is needed"),
    "unknown-key": (401, "The API key is not good"),
    "scope-missing": (403, "The API key may not do this"),
    "class-not-allowed": (403, "The key may not make a new class"),
    "unknown-route": (404, "There is no such route"),
    "unknown-sample": (404, "There is no such sample"),
    "unknown-prediction": (404, "There is no such prediction"),
    "no-picture": (404, "The sample's picture is not kept"),
    "unknown-class": (404, "There is no such class"),
    "unknown-model": (404, "There is no such model"),
    "unknown-version": (404, "There is no such version"),
    "no-adapter": (404, "The version has no adapter"),
    "method-not-allowed": (405, "The route does not take this method"),
    "head-timeout": (408, "The head came too slowly"),
    "body-timeout": (408, "The body came too slowly"),
    "id-conflict": (409, "The id was used before with another body"),
    "not-a-sample": (409, "The id is not that of a sample"),
    "sample-dead": (409, "The sample could not be learnt"),
    "too-many-classes": (409, "There may be no more classes"),
    "nothing-learnt": (409, "No class is learnt yet"),
    "version-gone": (410, "The version is no longer stored"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-content": (415, "The content type is not taken here"),
    "unsupported-image": (415, "The picture has a format that is not taken"),
    "damaged-image": (422, "The picture cannot be used"),
    "invalid-fields": (422, "A field is not as it must be"),
    "queue-full": (429, "Too many samples wait to be learnt"),
    "rate-exceeded": (429, "Requests come too often"),
    "too-many-at-once": (429, "Too many requests are being answered for this key"),
    "head-too-large": (431, "The head is too large"),
    "internal": (500, "The service failed"),
    "busy": (503, "The service has too much to do"),
    "log-behind": (503, "The log lost samples that were accepted"),
    "log-unavailable": (503, "The log does not answer"),
    "learner-silent": (503, "The learner does not answer"),
    "learning-paused": (503, "Samples are not taken now"),
    "not-ready": (503, "The service is not ready yet"),
    "not-learnt-in-time": (504, "The sample was not learnt in time"),
}

# Where clients of neighbours' protocols look for the sentence: KServe and Hugging Face, OpenAI.
_ALSO_IN = {"v2": "error", "hf": "error", "v1": "message", "embeddings": "message"}

_OF_STATUS = {
    400: "bad-request",
    404: "unknown-route",
    405: "method-not-allowed",
    413: "body-too-large",
    415: "unsupported-content",
}


# Of the client's own words in an answer; a field may have a name of megabytes.
_FIELD_SHOWN = 200


class Problem(Exception):
    """
    An error answer on its way to the client.

    Args:
        kind: a key of `KINDS`.
        detail: a sentence that says what to do.
        errors: for each bad field its name, what is wrong, and the index of its item in a list.
        retry_after_s: when to try again.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, self.title = KINDS[kind]
        self.errors = list(errors)
        self.retry_after_s = retry_after_s

    def document(self, instance: str) -> bytes:
        """Return the problem document of the request to `instance`."""
        about: dict[str, Any] = {
            "type": f"/problems/{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": str(self),
            "instance": instance,
        }
        if self.errors:
            about["errors"] = self.errors
        also_in = _ALSO_IN.get(instance[1:].partition("/")[0])
        if also_in is not None:
            about[also_in] = str(self)
        return orjson.dumps(about)

    def response(self, instance: str, headers: Mapping[str, str] | None = None) -> Response:
        """Return the whole answer."""
        extra = dict(headers or {})
        if self.retry_after_s is not None:
            extra["Retry-After"] = str(self.retry_after_s)
        return Response(self.document(instance), self.status, extra, MEDIA_TYPE)


def field_problem(field: str, message: str, *, index: int | None = None) -> Problem:
    """Return the 422 about one field."""
    return fields_problem([field_error(field, message, index)])


def field_error(field: str, message: str, index: int | None = None) -> dict[str, Any]:
    """Return one element of `errors`."""
    about: dict[str, Any] = {"field": field[:_FIELD_SHOWN], "message": message}
    return about if index is None else about | {"index": index}


def fields_problem(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Return the 422 about several fields; its detail names the first."""
    first = errors[0]
    place = f"item {first['index']}: " if "index" in first else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(
        "invalid-fields", f"{place}{first['field']}: {first['message']}{more}", errors=errors
    )


def image_problem(error: ImageError, errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Return the 415 or 422 about pictures; `error` is the first of them."""
    kind = "unsupported-image" if error.status == 415 else "damaged-image"
    return Problem(kind, str(error), errors=errors)


def pydantic_errors(error: Any, index: int | None = None) -> list[dict[str, Any]]:
    """Return pydantic's complaints as elements of `errors`, without the client's own values."""
    complaints = []
    for complaint in error.errors(include_url=False, include_input=False, include_context=False):
        message = complaint["msg"].removeprefix("Value error, ")
        if complaint["type"] == "extra_forbidden":
            message = "unknown field; remove it or correct its name (see /openapi.json)"
        if complaint["type"] == "missing":
            message = "is missing"
        if complaint["type"] == "model_type":
            message = "must be an object with named fields"
        field = ".".join(str(part) for part in complaint["loc"]) or "body"
        complaints.append(field_error(field, message, index))
    return complaints


def problem_of(error: EverlensError, *, writes: bool) -> Problem:
    """Return the answer to one of our own errors; `writes` where a sample may have been sent."""
    match error:
        case IdConflict():
            return Problem("id-conflict", str(error))
        case QueueFull():
            return Problem("queue-full", str(error), retry_after_s=error.retry_after_s)
        case TooManyClasses():
            return Problem("too-many-classes", str(error))
        case NewClass():
            return Problem("class-not-allowed", str(error))
        case LearningPaused():
            return Problem("learning-paused", str(error), retry_after_s=10)
        case ImageError():
            return image_problem(error, [field_error("image", str(error))])
        case LearnerSilent():
            return Problem("learner-silent", str(error), retry_after_s=2)
        case LogBehind():
            return Problem("log-behind", str(error))
        case OtherLog():
            return Problem("log-unavailable", str(error))
        case LogUnavailable():
            detail = f"{error}; ask again"
            if writes:
                detail += (
                    ". Of a sample that was sent it is unknown whether it was accepted: retry with "
                    "the same id"
                )
            return Problem("log-unavailable", detail, retry_after_s=2)
    raise error


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Return what a path takes; Starlette names the methods of one of its routes alone."""
    routes = [
        route
        for included in app.routes
        for route in (
            included.original_router.routes if hasattr(included, "original_router") else [included]
        )
    ]
    fitting = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    # Of the first template that fits: a sample's id may have slashes, and its picture's path is one.
    path = getattr(next(fitting, None), "path", None)
    alike = (route for route in routes if getattr(route, "path", None) == path)
    return sorted({method for route in alike for method in getattr(route, "methods", ())})


def install(app: FastAPI) -> None:
    """Make every error that we know a problem document; `service.tracking` does so for others."""

    async def own(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response(request.url.path)

    async def expected(request: Request, error: Exception) -> Response:
        assert isinstance(error, EverlensError)
        writes = request.method not in {"GET", "HEAD"}
        return problem_of(error, writes=writes).response(request.url.path)

    async def parameters(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        errors = [
            field_error(".".join(str(part) for part in complaint["loc"][1:]), complaint["msg"])
            for complaint in error.errors()
        ]
        return fields_problem(errors).response(request.url.path)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = _OF_STATUS.get(error.status_code, "bad-request")
        detail = {
            "unknown-route": "there is no such route; GET / lists what there is",
            "method-not-allowed": f"{request.method} is not taken here; see /openapi.json",
        }.get(kind, error.detail or HTTPStatus(error.status_code).phrase)
        headers = dict(error.headers or {})
        if kind == "method-not-allowed":
            headers["Allow"] = ", ".join(_methods(app, request))
        return Problem(kind, detail).response(request.url.path, headers)

    app.add_exception_handler(Problem, own)
    for kind in (Refused, ImageError, BusError):
        app.add_exception_handler(kind, expected)
    app.add_exception_handler(RequestValidationError, parameters)
    app.add_exception_handler(HTTPException, http)
