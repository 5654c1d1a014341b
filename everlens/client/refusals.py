"""Answers that are no results: which are asked for again, and the error that the others become."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from everlens.client.steps import Pause, Plan, Reply, Request, Result
from everlens.errors import EverlensError

_LATER = frozenset({429, 503})
_PAUSE_S = 0.5  # the first, where the service names no time; each next is twice as long
_PAUSE_S_MAX = 8.0
_SHOWN = 200  # characters of an answer that is no problem document


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field; `index` is that of its item where a list was sent."""

    field: str
    message: str
    index: int | None = None


class ApiError(EverlensError):
    """
    The service's answer is a problem document (RFC 9457), or it cannot be reached (status 0).

    Args:
        status: of HTTP; 0 where no answer came.
        title: what kind of problem it is.
        detail: a sentence that says what to do.
        type_: stable, for programs: `/problems/unknown-sample`.
        errors: the fields that are not as they must be.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        type_: str = "",
        errors: tuple[FieldError, ...] = (),
    ) -> None:
        super().__init__(_sentence(title, detail))
        self.status = status
        self.title = title
        self.detail = detail
        self.type = type_
        self.errors = errors
        for error in errors[1:]:  # the detail names the first
            place = "" if error.index is None else f"item {error.index}: "
            self.add_note(f"{place}{error.field}: {error.message}")

    @property
    def kind(self) -> str:
        """The last part of the type: `unknown-sample`."""
        return self.type.rpartition("/")[2]


@dataclass
class Patience:
    """
    How long to wait before the same request goes again, until patience ends.

    Args:
        patience_s: how long is waited in all, from one answer to the next.
    """

    patience_s: float
    # It answered once: no answer after that is a restart, and passes.
    reached: bool = field(default=False, init=False)
    _waited_s: float = field(default=0.0, init=False)
    _pause_s: float = field(default=_PAUSE_S, init=False)

    def pause_s(self, reply: Reply) -> float | None:
        """Return the wait before the next try, or None where the reply is the answer."""
        if reply.status not in _LATER and (reply.status or not self.reached):
            if reply.status:
                self.answered()
            return None
        if reply.retry_after.isdecimal():
            pause_s = float(reply.retry_after)
        else:
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _PAUSE_S_MAX)
        if self._waited_s + pause_s > self.patience_s:
            return None
        self._waited_s += pause_s
        self.reached = self.reached or reply.status > 0
        return pause_s

    def answered(self) -> None:
        """Begin anew: it answered, and not with "later"."""
        self.reached, self._waited_s, self._pause_s = True, 0.0, _PAUSE_S


def patiently(plan: Plan[Result], patience_s: float) -> Plan[Result]:
    """
    Carry out a plan; what the service answers with "later" is asked for again.

    A service that does not answer is an error at once, unless it has answered this plan before:
    long work outlives a restart.
    """
    patience = Patience(patience_s)
    result: Any = None
    try:
        while True:
            try:
                step = plan.send(result)
            except StopIteration as end:
                value: Result = end.value
                return value
            result = yield step
            while isinstance(step, Request) and not step.once:
                pause_s = patience.pause_s(result)
                if pause_s is None:
                    break
                yield Pause(pause_s)
                result = yield step
    finally:
        plan.close()


def ask(
    method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
) -> Plan[Any]:
    """
    Return the JSON value of an answer.

    Raises:
        ApiError: with the service's own words.
    """
    return (yield from ask_bytes(Request(method, path, body, headers or {}))).json()


def ask_bytes(request: Request) -> Plan[Reply]:
    """Return an answer that is what was asked for; errors as of `ask`."""
    reply: Reply = yield request
    if not reply.ok:
        raise problem(reply)
    return reply


def problem(reply: Reply) -> ApiError:
    """Return the error that a reply is."""
    try:
        fields = reply.json()
        errors = tuple(
            FieldError(str(each["field"]), str(each["message"]), each.get("index"))
            for each in fields.get("errors", ())
        )
        return ApiError(
            reply.status,
            str(fields["title"]),
            str(fields.get("detail", "")),
            type_=str(fields.get("type", "")),
            errors=errors,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        # Not from our service, but from something before it.
        return ApiError(reply.status, _phrase(reply.status), _text(reply.content))


def _sentence(title: str, detail: str) -> str:
    """Return title and detail as one sentence; a detail may begin with what the title says."""
    if detail.casefold().startswith(title.casefold()):
        return title + detail[len(title) :]
    return f"{title}: {detail}" if detail else title


def unreachable(url: str, reason: str) -> Reply:
    """Return the reply that stands for none, with what to do."""
    about = {
        "title": f"no answer from {url}",
        "detail": f"{reason}; start it with `make up` (or `everlens up`), or give its address "
        "(`--url`, `Client(url)`)",
    }
    return Reply(0, json.dumps(about).encode())


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")[:_SHOWN]
