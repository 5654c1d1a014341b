"""`docs/api.md`, made from what serves: every route, every error, every metric."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client.metrics_core import Metric

from everlens.errors import ModelError
from everlens.model.backbone import Backbone
from everlens.settings import Settings
from service.app import create_app
from service.metrics import Metrics
from service.openapi import EVERYWHERE
from service.problems import KINDS

Schema = dict[str, Any]

_HEAD = """\
# API

Written by `python -m service.reference > docs/api.md`; a test holds it. The running service has the
same as OpenAPI, with examples that can be sent as they are: `curl localhost:8000/openapi.json`.

Where the service has keys, show one as `Authorization: Bearer evl_...` or `X-API-Key: evl_...`; the
scope that each route needs stands beside it. A field that is not named here is refused, not ignored.
"""

_ERRORS = """\
## Errors

Every error is a problem document (RFC 9457, `application/problem+json`): `type` is one of these and is
never renamed, `detail` says what to do, `errors` names the bad fields. Branch on the type. With 429 and
503, `Retry-After` says when to try again. Any route may answer 400, 408, 413 and 431 to a request that
cannot be read, and 401, 403 and 429 where there are keys.

| type | status | title |
|---|---|---|
"""

_METRICS = """\
## Metrics

In Prometheus' text format at `GET /metrics`, the learner's figures among them; beside these the
usual `process_*`. No name of a class and no id is ever a label.

| metric | kind | meaning |
|---|---|---|
"""


def api_page() -> str:
    """Return `docs/api.md`."""
    with TemporaryDirectory() as folder:  # the application keeps a file beside the log
        settings = Settings(redis_url="redis://127.0.0.1", data_dir=Path(folder))
        document = create_app(settings, _no_model).openapi()
    schemas = document["components"]["schemas"]
    lines = [_HEAD]
    tag = ""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                lines.append(f"## {tag.capitalize()}\n")
            lines += _route(method.upper(), path, operation, schemas)
    errors = [f"| `/problems/{kind}` | {s} | {title} |" for kind, (s, title) in KINDS.items()]
    found = Metrics().registry.collect()
    metrics = [_metric(metric) for metric in found if metric.name.startswith("everlens")]
    return "\n".join([*lines, _ERRORS + "\n".join(errors), "", _METRICS + "\n".join(metrics), ""])


def _no_model() -> Backbone:
    raise ModelError("this application is only described")


def _route(method: str, path: str, operation: Schema, schemas: Schema) -> Iterator[str]:
    yield f"### `{method} {path}`\n"
    summary = operation["summary"].removesuffix("?")
    end = "." if summary == operation["summary"] else "?"
    yield f"{summary}{end} {_one_line(operation.get('description', ''))}".rstrip() + "\n"
    bodies = operation.get("requestBody", {}).get("content", {})
    facts = [_scope(operation)]
    if bodies:
        facts.append("Body: " + ", ".join(f"`{kind}`" for kind in bodies) + ".")
    facts.append("Answers " + "; ".join(_statuses(operation)) + ".")
    yield " ".join(facts) + "\n"
    asked = [
        _row(p["name"], p["schema"] | {"description": p.get("description", "")}, schemas)
        for p in operation.get("parameters", [])
    ]
    body = bodies.get("application/json") or bodies.get("multipart/form-data")
    if body is not None:
        named = {p["name"] for p in operation.get("parameters", [])}
        properties = _properties(body["schema"], schemas)
        asked += [_row(n, f, schemas) for n, f in properties.items() if n not in named]
    if asked:
        yield "\n".join(["| asked | type | meaning |", "|---|---|---|", *asked, ""])
    told = [_row(n, f, schemas) for n, f in _properties(_success(operation), schemas).items()]
    if told:
        yield "\n".join(["| answered | type | meaning |", "|---|---|---|", *told, ""])


def _scope(operation: Schema) -> str:
    ways = operation.get("security", [])
    scopes = [scope for way in ways for names in way.values() for scope in names]
    if scopes:
        return f"Scope `{scopes[0]}`."
    return "Any key." if ways else "Needs no key."


def _statuses(operation: Schema) -> Iterator[str]:
    own = {s: about for s, about in operation["responses"].items() if int(s) not in EVERYWHERE}
    for status in sorted(own):
        if status not in {"401", "403"}:
            yield f"{status}"


def _success(operation: Schema) -> Schema:
    for status, about in operation["responses"].items():
        if status.startswith("2"):
            schema: Schema = about.get("content", {}).get("application/json", {}).get("schema", {})
            return schema
    return {}


def _properties(schema: Schema, schemas: Schema) -> Schema:
    """Return the fields of an object, of any of several kinds, or of the objects of a list."""
    schema = _resolved(schema, schemas)
    for several in ("oneOf", "anyOf"):
        if several in schema:
            kinds = [_properties(kind, schemas) for kind in schema[several]]
            return {name: field for kind in kinds for name, field in kind.items()}
    if schema.get("type") == "array":
        return _properties(schema["items"], schemas)
    found: Schema = schema.get("properties", {})
    return found


def _resolved(schema: Schema, schemas: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    rest = {name: value for name, value in schema.items() if name != "$ref"}
    return {**schemas[schema["$ref"].rsplit("/", 1)[1]], **rest}


def _row(name: str, field: Schema, schemas: Schema) -> str:
    about = field.get("description") or _resolved(field, schemas).get("description", "")
    return f"| `{name}` | {_type(field, schemas)} | {_one_line(about)} |"


def _type(field: Schema, schemas: Schema) -> str:
    field = _resolved(field, schemas)
    for several in ("anyOf", "oneOf"):
        if several in field:
            kinds = dict.fromkeys(_type(kind, schemas) for kind in field[several])
            return " or ".join(kinds)
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind: str = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field.get('items', {}), schemas)}"
    if kind == "object" and (properties := field.get("properties")):
        return "{" + ", ".join(properties) + "}"
    return kind


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _metric(metric: Metric) -> str:
    name = metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
    return f"| `{name}` | {metric.type} | {metric.documentation} |"


if __name__ == "__main__":
    print(api_page(), end="")
