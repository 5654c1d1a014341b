"""
Which request a line of the log belongs to, and what becomes of an error that nobody foresaw. ①

An ASGI layer around all others. A client's own `X-Request-Id` is taken over when it is short and
harmless, and every answer names the one that holds.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everlens import logs
from service.problems import Problem

HEADER = "X-Request-Id"
_NAME = HEADER.lower().encode()
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_PATH_SHOWN = 200

# Asked every few seconds by whoever watches: no line, no span.
QUIET = frozenset({"/livez", "/readyz", "/metrics"})

log = logging.getLogger(__name__)


class Tracking:
    """
    Gives each request an id, a line when it is done (at `debug`), and a 500 when it fails.

    One that the server cuts off, since it ends, is a 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        started, status = time.monotonic(), 0

        async def naming(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                named = (_NAME, request_id.encode("ascii"))
                message = {**message, "headers": [*message["headers"], named]}
            await send(message)

        with logs.about(request_id=request_id):
            try:
                await self.app(scope, receive, naming)
            except Exception:
                log.exception("%s %s failed", scope["method"], _path(scope))
                if status:
                    raise  # half an answer is out: the server has to drop the connection
                await _failure(request_id).response(scope["path"])(scope, receive, naming)
            except asyncio.CancelledError:  # by the server, which ends
                if status:
                    raise
                # Nothing of this connection is begun any more.
                closing = _stopping(scope).response(scope["path"], {"Connection": "close"})
                await closing(scope, receive, naming)
            finally:
                if log.isEnabledFor(logging.DEBUG) and scope["path"] not in QUIET:
                    _tell(scope, status, time.monotonic() - started)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == _NAME and _WELL_FORMED.fullmatch(value):
            return str(value, "ascii")
    return secrets.token_hex(8)


def _failure(request_id: str) -> Problem:
    return Problem(
        "internal",
        "this is our fault, not yours; the log of the service has the reason, under request "
        f"{request_id}",
    )


def _stopping(scope: Scope) -> Problem:
    if scope["method"] in {"GET", "HEAD"}:
        return Problem("not-ready", "the service is stopping; ask again", retry_after_s=1)
    return Problem(
        "log-unavailable",
        "the service is stopping; ask again. Of a sample that was sent it is unknown whether it was "
        "accepted: retry with the same id",
        retry_after_s=1,
    )


def _tell(scope: Scope, status: int, seconds: float) -> None:
    """Write the line of a request: who asked for what, and how it went. Never the query string."""
    caller = scope.get("state", {}).get("caller")
    client = scope.get("client")
    fields = {
        "method": scope["method"],
        "path": _path(scope),
        "route": getattr(scope.get("route"), "path", ""),
        "status": status,
        "seconds": round(seconds, 6),
        "client": client[0] if client else "",
        "key": caller.id if caller is not None else "",
    }
    log.debug("%s %s", scope["method"], status, extra={"about": fields})


def _path(scope: Scope) -> str:
    """Return the path as it was sent, percent-encoded: it may name anything."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path[:_PATH_SHOWN].decode("ascii", "backslashreplace")
