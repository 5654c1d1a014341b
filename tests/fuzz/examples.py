"""Every request that the description shows, put together from its examples, links and schemas."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from tests.fuzz.hooks import WHOLE

Described = dict[str, Any]

# An example that is not to be answered with a success says with what, in this field.
STATUS = "x-status"

_EVENTS = "text/event-stream"  # never ends: its head is its answer
_SENT_FILES = dict(zip(("image/jpeg", "image/png", "image/webp"), WHOLE, strict=True))


class NotShown(AssertionError):
    """The description lacks an example of something that a request needs."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One request; `status` is what its example names, None where that is a success."""

    operation: Described
    name: str
    path: str
    sent: dict[str, Any]
    status: int | None

    def complaint(self, response: httpx.Response) -> str | None:
        """Return what is wrong with an answer, or None."""
        documented = self.operation["responses"].get(str(response.status_code))
        expected = (
            response.is_success if self.status is None else response.status_code == self.status
        )
        if documented is None or not expected:
            return f"{self.name}: {response.status_code} {response.text[:400]}"
        kind = response.headers.get("content-type", "").partition(";")[0]
        if "content" in documented and kind not in documented["content"]:
            return f"{self.name}: an answer of {kind}, which is not documented"
        return None


def ask_as_shown(document: Described, client: httpx.Client) -> list[str]:
    """
    Send every request that a description shows; return what was wrong, one line an answer.

    Deletions come last. What an answer's links say stands in the place of the examples: a
    prediction's id, say, which nobody can know beforehand.

    Raises:
        NotShown: a required parameter or a body has no example.
    """
    linked: Links = defaultdict(list)
    complaints = []
    for method, path, operation in _in_order(document):
        for shown in _requests(document, method, path, operation, linked):
            with client.stream(method, shown.path, **shown.sent) as response:
                if response.headers.get("content-type", "").partition(";")[0] != _EVENTS:
                    response.read()
                    _follow(operation, response, linked)
                complaints.append(shown.complaint(response))
    return [complaint for complaint in complaints if complaint]


# By operation: what the links of answers so far say of its parameters and of its body.
Links = defaultdict[str, list[tuple[dict[str, Any], dict[str, Any]]]]


def _in_order(document: Described) -> list[tuple[str, str, Described]]:
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return sorted(operations, key=lambda one: one[0] == "DELETE")


def _requests(
    document: Described, method: str, path: str, operation: Described, linked: Links
) -> Iterator[Shown]:
    # A new link for each request: a prediction gets feedback once.
    links = itertools.cycle(linked[operation["operationId"]] or [({}, {})])
    for kind, example, status in _bodies(document, operation):
        parameters, overlay = next(links)
        filled, of_path = _filled(path, operation.get("parameters", []), parameters)
        yield Shown(
            operation=operation,
            name=f"{method} {filled} {kind}",
            path=filled,
            sent=_sent(kind, example, overlay),
            status=status or of_path,
        )


def _filled(
    path: str, described: list[Described], linked: dict[str, Any]
) -> tuple[str, int | None]:
    """Return a path with its parameters, and the status that an example of one of them names."""
    status = None
    for parameter in described:
        name = parameter["name"]
        if parameter["in"] == "path":
            value, named = _example_of(parameter, f"{path}: {name}")
            path = path.replace(f"{{{name}}}", quote(str(linked.get(name, value)), safe=""))
            status = status or named
        elif parameter.get("required"):
            raise NotShown(f"{path}: {name} is required, and only paths have examples here")
    return path, status


def _bodies(document: Described, operation: Described) -> Iterator[tuple[str, Any, int | None]]:
    """Yield content type, example and expected status of each body; one empty one without any."""
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        yield "", None, None
    for kind, media in content.items():
        if "example" in media:
            yield kind, media["example"], None
        elif media.get("examples"):
            for example in media["examples"].values():
                yield kind, example["value"], example.get(STATUS)
        else:
            yield kind, _of_schema(_resolved(document, media["schema"]), kind), None


def _of_schema(schema: Described, kind: str) -> Any:
    """Return what a binary body, or a form with a file, looks like."""
    if schema.get("format") == "binary":
        return _SENT_FILES.get(kind, WHOLE[0])
    if kind != "multipart/form-data":
        raise NotShown(f"a body of {kind} has no example: {schema}")
    properties = schema["properties"]
    return {
        name: WHOLE[0]
        if properties[name].get("format") == "binary"
        else _example_of({"schema": properties[name]}, name)[0]
        for name in schema["required"]
    }


def _example_of(parameter: Described, name: str) -> tuple[Any, int | None]:
    schema = parameter.get("schema", {})
    if "example" in parameter:
        return parameter["example"], None
    if parameter.get("examples"):
        first = next(iter(parameter["examples"].values()))
        return first["value"], first.get(STATUS)
    for word in ("examples", "enum"):
        if schema.get(word):
            return schema[word][0], None
    raise NotShown(f"{name} has no example: {parameter}")


def _resolved(document: Described, schema: Described) -> Described:
    while "$ref" in schema:
        place: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        schema = place
    return schema


def _sent(kind: str, example: Any, overlay: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `httpx.Client.stream`."""
    if not kind:
        return {}
    if kind == "multipart/form-data":
        files = {name: value for name, value in example.items() if isinstance(value, bytes)}
        return {"data": {k: v for k, v in example.items() if k not in files}, "files": files}
    if isinstance(example, dict):
        example = example | overlay
    content = example if isinstance(example, str | bytes) else json.dumps(example)
    return {"content": content, "headers": {"content-type": kind}}


def _follow(operation: Described, response: httpx.Response, linked: Links) -> None:
    """Note what the links of an answer say."""
    links = operation["responses"].get(str(response.status_code), {}).get("links", {})
    if not links or not isinstance(response.json(), dict):
        return
    for link in links.values():
        parameters = {k: _value(v, response) for k, v in link.get("parameters", {}).items()}
        overlay = {k: _value(v, response) for k, v in link.get("requestBody", {}).items()}
        linked[link["operationId"]].append((parameters, overlay))


def _value(expression: Any, response: httpx.Response) -> Any:
    """Return the value of a runtime expression, of which we write one kind; of a constant, it."""
    begin = "$response.body#/"
    if not (isinstance(expression, str) and expression.startswith(begin)):
        return expression
    value = response.json()
    for part in expression.removeprefix(begin).split("/"):
        value = value[part]
    return value
