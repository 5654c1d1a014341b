"""
One line for each event: for people (`text`) or for machines (`json`).

What an event belongs to (a request, a batch) is bound once around the work, by `about`, and not
handed along; a trace is looked up where OpenTelemetry has one. No client can forge a line: whatever
breaks lines is escaped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from opentelemetry import trace

# Our own loggers; a library is only heard when it has something to say.
_ROOMS = ("everlens", "service", "worker")

_ABOUT: ContextVar[Mapping[str, object]] = ContextVar("about", default={})  # noqa: B039 - never changed in place

_LINE = re.compile(r"\S+Z (?P<level>[A-Z]+) (?P<logger>\S+): (?P<message>.*)")

log = logging.getLogger(__name__)


def begin(form: str = "text", level: str = "info") -> None:
    """
    Write all lines to standard error from now on.

    Args:
        form: `text` or `json`.
        level: of our own loggers; `debug` has a line for each request and each batch.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    for room in _ROOMS:
        logging.getLogger(room).setLevel(level.upper())
    sys.excepthook = _unforeseen


@contextlib.contextmanager
def about(**fields: object) -> Iterator[None]:
    """Let every line that is written inside say what it belongs to."""
    token = _ABOUT.set({**_ABOUT.get(), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what a line belongs to: what is bound, the trace, and its own `extra={"about": …}`."""
    found = dict(_ABOUT.get())
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        found |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
    return found | getattr(record, "about", {})


class TextLines(logging.Formatter):
    """`time LEVEL logger: message (field=value …)`, and the traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one event."""
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {_one_line(record.getMessage())}"
        line += f" ({_one_line(fields)})" if fields else ""
        return "\n".join([line, *_exception(record).splitlines()])


class JsonLines(logging.Formatter):
    """One JSON object a line, with the traceback as one of its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one event."""
        event: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if exception := _exception(record):
            event["exception"] = exception
        # ASCII, so that no reader takes one of Unicode's line separators for the end of a line.
        return json.dumps(event, default=str)


def for_people(line: str) -> tuple[str, str]:
    """
    Return level and message of a line of either form, the logger's name before the message.

    A line of another origin (a traceback, a library's print) has the level "".
    """
    if line.startswith("{"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            return str(event["level"]), f"{event['logger']}: {event['message']}"
    found = _LINE.fullmatch(line)
    return (found["level"], f"{found['logger']}: {found['message']}") if found else ("", line)


def _time(record: logging.LogRecord) -> str:
    """Return when it happened, in UTC as RFC 3339 has it, to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _exception(record: logging.LogRecord) -> str:
    if not (record.exc_info and record.exc_info[0]):
        return ""
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()


def _unforeseen(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> Any:
    """Write what ends the process as a line too."""
    log.critical("%s", error or kind.__name__, exc_info=(kind, error, where))
