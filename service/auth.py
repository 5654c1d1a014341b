"""
Who asks, may they, and not too often: decided before a byte of the body is read. ①

An ASGI layer and one table: a route that the table does not name does not exist for a service with
keys. Without any key every route is open, and `service.__main__` listens on loopback only.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fastapi import Request
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from everlens.errors import KeysError
from everlens.keys import SCOPES, ApiKey, KeyRing, read_ring
from service.limits import refuse
from service.problems import Problem
from service.rates import AddressBuckets, Bucket

OPEN = "open"  # also without a key: what an orchestrator asks
ANY = "any"  # whoever has a key

# In the order of the routes, so that a path which fits two templates gets the scope of its route.
SCOPE_OF_ROUTE = {
    "GET /openapi.json": ANY,
    "GET /samples/{sample_id:path}/image": "read",
    "POST /samples": "learn",
    "POST /samples/": "learn",
    "GET /samples/{sample_id:path}": "read",
    "POST /classify": "classify",
    "POST /classify/": "classify",
    "POST /feedback": "learn",
    "GET /predictions": "read",
    "GET /predictions/{prediction_id}": "read",
    "GET /predictions/{prediction_id}/image": "read",
    "GET /labelling": "read",
    "GET /classes": "read",
    "GET /classes/{name:path}": "read",
    "GET /versions": "read",
    "GET /versions/{version}": "read",
    "GET /learning": "read",
    "POST /versions/{version}/activate": "admin",
    "POST /versions/{version}/pin": "admin",
    "DELETE /versions/{version}/pin": "admin",
    "GET /versions/{version}/adapter": "read",
    "DELETE /samples/{sample_id:path}": "learn",
    "DELETE /classes/{name:path}": "admin",
    "POST /learning/pause": "admin",
    "POST /learning/resume": "admin",
    "GET /events": "read",
    "POST /hf/zero-shot-image-classification": "classify",
    "GET /v2/health/live": OPEN,
    "GET /v2/health/ready": OPEN,
    "GET /v2": ANY,
    "GET /v2/models/{model}": "classify",
    "GET /v2/models/{model}/versions/{version}": "classify",
    "GET /v2/models/{model}/ready": "classify",
    "GET /v2/models/{model}/versions/{version}/ready": "classify",
    "POST /v2/models/{model}/infer": "classify",
    "POST /v2/models/{model}/versions/{version}/infer": "classify",
    "POST /embeddings": "classify",
    "POST /v1/embeddings": "classify",
    "GET /v1/models": ANY,
    "GET /v1/models/{model:path}": "classify",
    "GET /label-studio/health": OPEN,
    "POST /label-studio/setup": "classify",
    "POST /label-studio/predict": "classify",
    "POST /label-studio/webhook": "learn",
    "POST /label-studio/train": "learn",
    # The page is nobody's secret; what it asks for needs the key that it asks for.
    "GET /console": OPEN,
    "GET /console/": OPEN,
    "GET /console/{name}": OPEN,
    "GET /": ANY,
    "GET /livez": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": "read",
}

_LOOK_S = 1.0
_HOLD_BACK_S = 1.0
_FAILURES_PER_S = 5.0  # of one address, before it hears 429 instead of 401
_CALLER = "caller"
# Where a key may be shown as a password: Label Studio knows no other way. Not everywhere, since a
# browser that knows a password sends it along with whatever another page makes it ask.
_BASIC = "/label-studio/"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the id of the key (empty without keys), and what it may do."""

    id: str
    scopes: frozenset[str]


ANYONE = Caller("", frozenset(SCOPES))


def caller_of(request: Request) -> Caller:
    """Return who sent a request to a route that is not open."""
    caller: Caller = request.scope["state"][_CALLER]
    return caller


class ScopeTable:
    """`SCOPE_OF_ROUTE`, by path."""

    def __init__(self, scope_of_route: dict[str, str]) -> None:
        self._rows: list[tuple[re.Pattern[str], str, str]] = []
        for route, scope in scope_of_route.items():
            method, path = route.split()
            self._rows.append((compile_path(path)[0], method, scope))
        # Paths without a parameter, looked up beforehand: the most, and those that matter.
        paths = {route.split()[1] for route in scope_of_route if "{" not in route}
        self._known = {path: self._fitting(path) for path in paths}

    def open(self, method: str, path: str) -> bool:
        """Return whether a request needs no key where there are keys."""
        scopes = self._known.get(path) or self._fitting(path)
        return scopes.get(method) == OPEN

    def needed(self, method: str, path: str) -> str:
        """
        Return the scope that a request needs.

        Raises:
            Problem: the table has no such route (404), or not with this method (405).
        """
        scopes = self._known.get(path) or self._fitting(path)
        if not scopes:
            raise Problem("unknown-route", "there is no such route; GET / lists what there is")
        scope = scopes.get("GET" if method == "HEAD" else method)
        if scope is None:
            raise Problem("method-not-allowed", f"{method} is not taken here; see /openapi.json")
        return scope

    def _fitting(self, path: str) -> dict[str, str]:
        """Return the scope for each method; of rows that fit both, the first counts."""
        fitting: dict[str, str] = {}
        for pattern, method, scope in self._rows:
            if pattern.match(path):
                fitting.setdefault(method, scope)
        return fitting


class WatchedRing:
    """
    The keys of a file, as they are now, give or take a second.

    A file that can no longer be read, is gone or has become empty changes nothing: a mistake must
    neither shut the service to everybody nor open it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Read the file.

        Raises:
            KeysError: it is not as it must be.
        """
        self.path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._ring = read_ring(path)
        self._complaint = ""
        self._look_at = clock() + _LOOK_S

    def current(self) -> KeyRing:
        """Return the keys; the same object as long as none has changed."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._look()
        return self._ring

    def _look(self) -> None:
        stamp = _stamp(self.path)  # before the file is read: what changes meanwhile is seen next
        if stamp == self._stamp:
            return
        try:
            ring = read_ring(self.path)
        except KeysError as error:
            self._complain(str(error))
            return
        if self._ring and not ring:
            self._complain(f"there are no API keys in {self.path} any more")
            return
        self._ring, self._stamp, self._complaint = ring, stamp, ""

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            log.error("%s; the keys that were read before still hold", complaint)
        self._complaint = complaint


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes with the file's content, owner or mode; empty where there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a third of the time of Path.stat
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


@dataclass(slots=True)
class _Use:
    """Whose a key is, and what it is doing."""

    caller: Caller = Caller("", frozenset())
    bucket: Bucket = field(default_factory=Bucket)
    in_flight: int = 0
    held_back: int = 0  # refusals that wait


class ApiKeys:
    """
    ASGI layer that lets requests in by their key, and tells the routes whose it was.

    All keys share twice `concurrency` places, and a key may hold as many as are free: one alone
    gets half of them, n that take what they can get 1/(n + 1) each, and as many are left for
    whoever asks less. A refusal to who asks too often is held back for a moment: a client that asks
    again at once would otherwise cost more than its answers.

    Args:
        table: which scope a request needs.
        ring: the keys.
        rate_per_s: requests a second with one key that names no rate of its own.
        concurrency: requests with one key that are answered at the same time, at most.
        hold_back_s: how long a refusal to who asks too often waits.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        table: ScopeTable,
        ring: WatchedRing,
        rate_per_s: float,
        concurrency: int,
        hold_back_s: float = _HOLD_BACK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self.ring = ring
        self.rate_per_s = rate_per_s
        self.places = 2 * concurrency
        self.held_back_max = concurrency  # for each key: those that wait cost memory
        self.hold_back_s = hold_back_s
        self.clock = clock
        self.table = table
        self.failures = AddressBuckets(_FAILURES_PER_S)
        self._seen = KeyRing()
        self._uses: dict[str, _Use] = {}
        self._strangers = _Use()
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or self.table.open(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        ring = self.ring.current()
        if not ring:
            state[_CALLER] = ANYONE
            await self.app(scope, receive, send)
            return
        try:
            use = await self._admitted(scope, ring)
        except Problem as problem:
            await refuse(problem, scope, receive, send, _challenge(problem))
            return
        state[_CALLER] = use.caller
        use.in_flight += 1
        self._in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            use.in_flight -= 1
            self._in_flight -= 1

    async def _admitted(self, scope: Scope, ring: KeyRing) -> _Use:
        """
        Return the use of the key that a request shows.

        Raises:
            Problem: there is none, it is not good, asks too often, or may not do this.
        """
        token = _token(scope)
        key = None if token is None else ring.find(token, datetime.now(UTC))
        if key is None:
            raise await self._failure(scope, shown=token is not None)
        use = self._use(key, ring)
        wait_s = use.bucket.take(key.rate_per_s or self.rate_per_s, self.clock())
        if wait_s:
            await self._hold_back(use)
            raise _too_often("this key asks more often than it may; ask less often", wait_s)
        if use.in_flight >= self.places - self._in_flight:
            await self._hold_back(use)
            raise Problem(
                "too-many-at-once",
                "as many requests with this key are being answered as there is room for; "
                "wait for one of them",
                retry_after_s=1,
            )
        needed = self.table.needed(scope["method"], scope["path"])
        if needed != ANY and needed not in use.caller.scopes:
            raise Problem(
                "scope-missing",
                f"this key lacks the scope {needed}; ask for one made with "
                f"`everlens keys add NAME --scope {needed}`",
            )
        return use

    def _use(self, key: ApiKey, ring: KeyRing) -> _Use:
        if ring is not self._seen:
            self._seen = ring
            # Made anew, so that it is never larger than the file, and scopes are the file's.
            self._uses = {each.id: self._uses.get(each.id, _Use()) for each in ring}
            for each in ring:
                self._uses[each.id].caller = Caller(each.id, frozenset(each.scopes))
        return self._uses[key.id]

    async def _hold_back(self, use: _Use) -> None:
        if use.held_back < self.held_back_max:
            use.held_back += 1
            try:
                await asyncio.sleep(self.hold_back_s)
            finally:
                use.held_back -= 1

    async def _failure(self, scope: Scope, *, shown: bool) -> Problem:
        # After the look-up, and never before it: behind a proxy or a NAT everybody has the same
        # address, and one broken client must not lock out the others. A secret of 256 bits is
        # not guessed, however often one tries.
        client = scope.get("client")
        wait_s = self.failures.take(client[0] if client else "", self.clock())
        if wait_s:
            await self._hold_back(self._strangers)
            return _too_often("too many requests without a good key came from here", wait_s)
        if shown:
            return Problem(
                "unknown-key",
                "this key is not known here, has expired or was revoked; ask for a new one",
            )
        return Problem(
            "no-key",
            "show an API key: `Authorization: Bearer evl_...`; whoever runs the service makes one "
            "with `everlens keys add NAME`",
        )


def _token(scope: Scope) -> str | None:
    """Return what a request shows as its key, or None."""
    token = None
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return str(value[7:].strip(), "latin-1")
        if name == b"authorization" and value[:6].lower() == b"basic ":
            token = _password(value[6:]) if scope["path"].startswith(_BASIC) else None
        if name == b"x-api-key":
            token = str(value, "latin-1")
    return token


def _password(credentials: bytes) -> str | None:
    """Return the password of a name and a password; whose name it is does not matter."""
    try:
        pair = base64.b64decode(credentials, validate=True)
    except binascii.Error:
        return None
    return str(pair.partition(b":")[2], "latin-1")


def _too_often(detail: str, wait_s: float) -> Problem:
    return Problem("rate-exceeded", detail, retry_after_s=math.ceil(wait_s))


def _challenge(problem: Problem) -> dict[str, str]:
    """Return the header that says how to come in (RFC 6750, section 3)."""
    error = {
        "no-key": "",
        "unknown-key": ', error="invalid_token"',
        "scope-missing": ', error="insufficient_scope"',
    }.get(problem.kind)
    return {} if error is None else {"WWW-Authenticate": f'Bearer realm="everlens"{error}'}
