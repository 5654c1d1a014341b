"""What OpenAPI cannot read off the handlers: errors, and bodies in several content types. ①"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.auth import ANY, OPEN, ScopeTable
from service.feedback_schemas import LabelIn, NotLabelIn
from service.problems import KINDS, MEDIA_TYPE
from service.schemas import (
    EXAMPLE_IMAGE,
    HoldIn,
    ProblemOut,
    QueryFields,
    QueryIn,
    SampleFields,
    SampleIn,
)

# Of an answer long ago: a client puts its own in its place, as the links of POST /classify say.
PREDICTION_ID = "4349f436c5d94a2b8f6e1d7a0b3c2e59"

_REFERENCE = "#/components/schemas/{model}"

_PARTS: dict[str, Any] = {}  # models inside the bodies of `json_body`, by their names

_FILE = {"type": "string", "format": "binary", "description": "JPEG, PNG or WebP."}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of the error answers with these statuses."""
    return {
        status: {
            "description": "; ".join(title for s, title in KINDS.values() if s == status),
            "content": {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="ProblemOut")}}},
        }
        for status in statuses
    }


# What any request may hear, whatever it asks: see `service.limits` and `service.connections`.
EVERYWHERE = problems(400, 408, 413, 431)


def install(app: FastAPI, table: ScopeTable) -> None:
    """Complete the application's description: the problem document, and which key a route takes."""
    describe = app.openapi
    _, problem = models_json_schema([(ProblemOut, "serialization")], ref_template=_REFERENCE)

    def described() -> dict[str, Any]:
        document = describe()
        document["components"]["schemas"].update(problem["$defs"] | _PARTS)
        _add_keys(document, table)
        return document

    app.openapi = described  # type: ignore[method-assign]


_KEYS: dict[str, Any] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "`evl_...`, made by `everlens keys add NAME`; where the service has keys.",
    },
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _add_keys(document: dict[str, Any], table: ScopeTable) -> None:
    """Write into an OpenAPI document how a key is shown, what it must be for, and its errors."""
    document["components"]["securitySchemes"] = _KEYS
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            scope = table.needed(method.upper(), path)
            if scope == OPEN:
                operation["security"] = []
                continue
            names = [] if scope == ANY else [scope]
            # The empty one: a service without keys asks for none.
            operation["security"] = [{"bearer": names}, {"header": names}, {}]
            for status, about in problems(401, 403, 429).items():
                operation["responses"].setdefault(str(status), about)


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _one_or_many(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    one = _schema(model)
    return {
        "schema": {"oneOf": [one, {"type": "array", "items": one}]},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }


def json_body(model: type[BaseModel], example: Any) -> dict[str, Any]:
    """Return the description of a body that is one JSON object; its parts go to the components."""
    schema = model.model_json_schema(ref_template=_REFERENCE)
    _PARTS.update(schema.pop("$defs", {}))
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _form(model: type[BaseModel]) -> dict[str, Any]:
    schema = _schema(model)
    fields = {name: _without_null(field) for name, field in schema["properties"].items()}
    schema["properties"] = {"image": _FILE, **fields}
    schema["required"] = ["image", *schema.get("required", [])]
    return {"schema": schema}


def _parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "query",
            "schema": _without_null(schema),
            "description": schema.get("description", ""),
        }
        for name, schema in _schema(model)["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field as a text has it: it is there or not, and never null."""
    if "anyOf" not in schema:
        return schema
    kept = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name not in {"anyOf", "default"}}
    return {**kept[0], **rest} if len(kept) == 1 else {"anyOf": kept, **rest}


# One story: this picture is called a heron under the id `first`, which later requests name.
_SAMPLE = {"image": EXAMPLE_IMAGE, "label": "heron", "id": "first"}
_SAMPLE_LINE = f'{{"image": "{EXAMPLE_IMAGE}", "label": "heron"}}\n'
_QUERY = {"image": EXAMPLE_IMAGE, "labels": ["heron", "egret"], "top": 2}
_LABEL = {"prediction_id": PREDICTION_ID, "label": "heron"}
_NOT_LABEL = {"prediction_id": PREDICTION_ID, "not_label": "heron"}

SAMPLES: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "pattern": "^[!-~]([ -~]*[!-~])?$", "maxLength": 200},
            "description": "The id of a single sample, instead of the field; ASCII only.",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": _one_or_many(
                SampleIn,
                {"one": _SAMPLE, "many": [{"image": EXAMPLE_IMAGE, "label": "heron"}]},
            ),
            "application/x-ndjson": {
                "schema": {"type": "string", "format": "ndjson"},
                "example": _SAMPLE_LINE,
            },
            "multipart/form-data": _form(SampleFields),
        },
    },
}

FEEDBACK: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [_schema(LabelIn), _schema(NotLabelIn)]},
                "examples": {"label": {"value": _LABEL}, "not_label": {"value": _NOT_LABEL}},
            }
        },
    },
}

# Where an answer leads: what OpenAPI calls links, so that a program (and our tests) can follow.
OF_AN_ANSWER: dict[str, Any] = {
    "feedback": {
        "operationId": "post_feedback_feedback_post",
        "requestBody": {"prediction_id": "$response.body#/prediction_id"},
        "description": "Say what is really in the picture.",
    },
    "prediction": {
        "operationId": "get_prediction_predictions__prediction_id__get",
        "parameters": {"prediction_id": "$response.body#/prediction_id"},
    },
    "picture": {
        "operationId": "get_picture_predictions__prediction_id__image_get",
        "parameters": {"prediction_id": "$response.body#/prediction_id"},
    },
}

CLASSIFY: dict[str, Any] = {
    "parameters": _parameters(QueryFields),
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": {"schema": _FILE},
            "image/png": {"schema": _FILE},
            "image/webp": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
            "application/json": _one_or_many(QueryIn, {"one": _QUERY, "many": [_QUERY]}),
            "multipart/form-data": _form(QueryFields),
        },
    },
}

HOLD: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": _schema(HoldIn),
                "example": {"reason": "the labels of this morning are being checked"},
            },
        },
    },
}
