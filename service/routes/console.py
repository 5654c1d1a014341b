"""`/console`: the page that shows what is learnt, and teaches; a few files and no build. ①"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response

from service.problems import Problem

# Not in the API's description: they are for people, and change without notice.
router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "console"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Labels are hostile text. Were one ever taken for markup, it could load and run nothing, and the
# browser refuses to take a text for markup at all (trusted types).
_POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    "style-src 'self'; "
    "img-src 'self' blob: data:; "
    "connect-src 'self'; "
    "base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, and asked about each time: the modules of two releases are never mixed.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    """One file of the page."""

    body: bytes
    media_type: str
    etag: str


@cache
def _files() -> dict[str, _File]:
    """Return all files by name. Nothing else can be asked for, whatever a path says."""
    return {
        path.name: _File(body, _MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()}"')
        for path in sorted(_FOLDER.iterdir())
        for body in [path.read_bytes()]
    }


def _sent(name: str, known: str | None) -> Response:
    """
    Return a file, or 304 to a browser that has it.

    Raises:
        Problem: there is no such file.
    """
    file = _files().get(name)
    if file is None:
        raise Problem("unknown-route", "the page has no such file; it is at /console")
    headers = _HEADERS | {"ETag": file.etag}
    if known is not None and file.etag in known:  # a proxy may have made it weak: W/"..."
        return Response(None, 304, headers)
    return Response(file.body, 200, headers, file.media_type)


IfNoneMatch = Annotated[str | None, Header()]


@router.get("/console")
async def get_console(if_none_match: IfNoneMatch = None) -> Response:
    """The page."""
    return _sent("index.html", if_none_match)


@router.get("/console/")
async def get_console_folder() -> Response:
    """Where people look for it too. Relative, for proxies that serve us under a path."""
    return Response(None, 308, {"Location": "../console"})


@router.get("/console/{name}")
async def get_console_file(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """One of the page's files."""
    return _sent(name, if_none_match)
