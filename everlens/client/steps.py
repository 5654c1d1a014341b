"""
What a verb asks of whoever carries it out: steps, and no input or output of its own.

A verb is a generator. It yields a `Request`, a `Pause` or an `Aside`, is sent what came of it, and
returns its result. So a verb is written once; `clients` has one that blocks and one that awaits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Request:
    """
    A request to the service; a `Reply` comes of it.

    Args:
        method: of HTTP.
        path: quoted, with its query.
        body: a JSON value; None sends no body.
        headers: besides those of every request.
        once: the answer counts as it is, also when it says "later".
    """

    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    once: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service answered. Status 0: nothing; `content` says why, as a problem document."""

    status: int
    content: bytes
    retry_after: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is what was asked for."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Return the JSON value of an answer."""
        return json.loads(self.content)


@dataclass(frozen=True, slots=True)
class Pause:
    """A wait; None comes of it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Aside(Generic[Result]):
    """Work that may block, like reading a file; what it returns comes of it."""

    work: Callable[[], Result]


Step: TypeAlias = Request | Pause | Aside[Any]
Plan: TypeAlias = Generator[Step, Any, Result]


def aside(work: Callable[[], Result]) -> Plan[Result]:
    """Return what `work` returns, without holding up an event loop."""
    result: Result = yield Aside(work)
    return result
