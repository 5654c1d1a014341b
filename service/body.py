"""A request's body → plain values: JSON, NDJSON and forms, read without trust. ①"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.problems import Problem, field_error, field_problem, fields_problem
from service.schemas import FieldErrors, validated

JSON = "application/json"
NDJSON = {"application/x-ndjson", "application/ndjson", "application/jsonl"}
FORM = "multipart/form-data"
RAW = {"image/jpeg", "image/jpg", "image/png", "image/webp", "application/octet-stream"}

_ERRORS_MAX = 16
_DEPTH_MAX = 32
_BRACKETS_MAX = 20_000
# The largest request of ours, 64 pictures with 1,000 names each, has under 200,000.
_STRUCTURE_MAX = 500_000
_FIELD_BYTES_MAX = 64 * 1024
_BOUNDARY = re.compile(r"[\w'()+,./:=?-]([\w'()+,./:=? -]{0,68}[\w'()+,./:=?-])?", re.ASCII)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}:,'))
_OPENING = frozenset(b"[{")

Shape = TypeVar("Shape", bound=BaseModel)


def media_type(request: Request) -> str:
    """Return the content type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(request: Request, taken: str) -> Problem:
    """Return the 415 that says what is taken instead."""
    given = media_type(request) or "no content type"
    return Problem("unsupported-content", f"{given} is not taken here; send {taken}")


def without_parameters(request: Request) -> None:
    """
    Return when the request has no query parameters.

    Raises:
        Problem: it has; ignoring a field in the wrong place would look like obeying it.
    """
    if request.query_params:
        raise fields_problem(
            [
                field_error(name, "is a query parameter; put it into the body")
                for name in request.query_params
            ]
        )


async def json_as(request: Request, model: type[Shape]) -> Shape:
    """
    Return the body, one JSON object, as a model.

    Raises:
        Problem: another content type, query parameters, not JSON, or bad fields.
    """
    without_parameters(request)
    if media_type(request) != JSON:
        raise unsupported(request, JSON)
    try:
        return validated(model, parse_json(await request.body()))
    except FieldErrors as error:
        raise fields_problem(error.errors[:_ERRORS_MAX]) from error


def parse_json(content: bytes) -> Any:
    """
    Return the value of a JSON text.

    Raises:
        Problem: 400 for what is not JSON, nested deeper or with more values than any body of ours,
            or names a field twice, of which another reader might take the other.
    """
    named = _check_structure(content)
    try:
        # Straight into objects: orjson copies the text first, into twelve times its room.
        value = from_json(content, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise Problem("bad-json", f"the body is not JSON: {error}") from error
    if named != _fields(value):
        raise Problem("bad-json", "an object of the body names a field twice; send it once")
    return value


def _fields(value: Any) -> int:
    """
    Return how many fields all objects of a value have together.

    Raises:
        Problem: there is a number that no float can be.
    """
    if isinstance(value, dict):
        return len(value) + sum(map(_fields, value.values()))
    if isinstance(value, list):
        return sum(map(_fields, value))
    if isinstance(value, int | float) and abs(value) > sys.float_info.max:
        raise Problem("bad-json", "a number of the body is larger than 1.8e308; correct it")
    return 0


def parse_ndjson(content: bytes, *, values_max: int) -> list[Any]:
    """
    Return the values of a text with one JSON value a line; empty lines are skipped.

    Raises:
        Problem: 400 as for `parse_json`, with the number of the line; 422 for too many values.
    """
    values = []
    for number, line in enumerate(_lines(content), start=1):
        if number > 2 * values_max + 2:
            raise field_problem("body", f"has too many lines; send at most {values_max} samples")
        if line.strip():
            try:
                values.append(parse_json(line))
            except Problem as problem:
                raise Problem(problem.kind, f"line {number}: {problem}") from problem
    return values


def _lines(content: bytes) -> Iterator[bytes]:
    """Yield line by line, so that each is still in the processor's cache when it is read."""
    start, end = 0, content.find(b"\n")
    while end >= 0:
        yield content[start:end]
        start, end = end + 1, content.find(b"\n", end + 1)
    yield content[start:]


def _check_structure(content: bytes) -> int:
    """
    Return how many fields are named; look at depth and size first.

    All of it at the speed of `bytes`: no recursion, no loop over the text.
    """
    if b"\\" in content:
        content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = content.translate(None, _NOT_STRUCTURE)
    if len(structure) > _STRUCTURE_MAX:
        raise Problem("bad-json", "the body has far more values than any request of ours")
    outside = b"".join(structure.split(b'"')[::2])
    brackets = outside.translate(None, b":,")
    if len(brackets) > _BRACKETS_MAX:
        raise Problem(
            "bad-json", "the body has far more lists and objects than any request of ours"
        )
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in _OPENING else -1
        if depth > _DEPTH_MAX:
            raise Problem("bad-json", f"the body is nested deeper than {_DEPTH_MAX} levels")
    return outside.count(b":")


@asynccontextmanager
async def form_of(request: Request, *, files_max: int, fields_max: int) -> AsyncIterator[FormData]:
    """
    Give the fields of a multipart body, read as UTF-8; its files are closed afterwards.

    Raises:
        Problem: 400 for what is not a form of these limits, 422 for a field in another encoding.
    """
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary", b"").decode("latin-1")
    if not _BOUNDARY.fullmatch(boundary):
        raise Problem("bad-request", "the form's content type has no boundary as RFC 2046 has it")
    # Starlette reads bytes that are no UTF-8 as Latin-1: another name than the one that was meant.
    # Latin-1 for all of them loses nothing, and is undone below.
    kept = Headers({"content-type": f'{FORM}; boundary="{boundary}"; charset=latin-1'})
    parser = MultiPartParser(
        kept,
        request.stream(),
        max_files=files_max,
        max_fields=fields_max,
        max_part_size=_FIELD_BYTES_MAX,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem("bad-request", f"the form cannot be read: {error.message}") from error
    try:
        yield FormData(
            [(_utf8(name), _utf8_field(name, value)) for name, value in form.multi_items()]
        )
    finally:
        await form.close()


def _utf8_field(name: str, value: str | UploadFile) -> str | UploadFile:
    return _utf8(value, name) if isinstance(value, str) else value


def _utf8(latin: str, field: str = "body") -> str:
    try:
        return latin.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise field_problem(field, "is not UTF-8; send the form in UTF-8") from None
