"""A line for each event: readable by machines, forged by nobody, and said what it belongs to."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

from everlens.logs import JsonLines, TextLines, about, for_people
from tests.deploy.compose import ROOT

HOSTILE = 'heron\n2026-01-01T00:00:00.000Z ERROR service: forged\u2028{"level":"ERROR"}'


def record(message: str, *arguments: object, **extra: Any) -> logging.LogRecord:
    """Return a record as a logger makes it."""
    made = logging.LogRecord("service.x", logging.WARNING, "x.py", 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_a_json_line_is_one_object_with_what_it_belongs_to() -> None:
    """Time, level, logger and message, what is bound around it, and its own fields."""
    with about(request_id="r1"), about(batch=3):
        line = JsonLines().format(record("%s of %d", "one", 2, about={"status": 404}))
    event = json.loads(line)

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event == {
        "level": "WARNING",
        "logger": "service.x",
        "message": "one of 2",
        "request_id": "r1",
        "batch": 3,
        "status": 404,
    }
    assert "request_id" not in JsonLines().format(record("after"))


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_no_client_makes_a_line(form: logging.Formatter) -> None:
    """Whatever a name holds, an event is one line, and still says what it said."""
    with about(request_id=HOSTILE):
        line = form.format(record("%s is refused", HOSTILE))

    assert len(line.splitlines()) == 1
    level, message = for_people(line)
    assert level == "WARNING"
    assert message.startswith("service.x: heron")


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_a_traceback_stays_with_its_event(form: logging.Formatter) -> None:
    """In JSON it is a field; as text it stands below the line."""
    try:
        raise ValueError("the reason")
    except ValueError:
        line = form.format(record("it failed", exc_info=sys.exc_info()))

    assert "ValueError: the reason" in line
    assert for_people(line.splitlines()[0]) == ("WARNING", "service.x: it failed")


def test_lines_of_others_are_left_as_they_are() -> None:
    """What is no event of ours has no level, and is not mistaken for JSON."""
    for line in ("Traceback (most recent call last):", '{"level": "x"}', "{", "", "[1]", "{1}"):
        assert for_people(line) == ("", line)


def test_an_error_that_ends_the_process_is_a_line_too() -> None:
    """Also what nobody caught is one JSON object, the traceback in it."""
    source = "from everlens import logs; logs.begin('json', 'info'); raise RuntimeError('why')"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False
    )

    event = json.loads(done.stderr)
    assert (event["level"], event["message"], done.returncode) == ("CRITICAL", "why", 1)
    assert "RuntimeError: why" in event["exception"]


def test_levels_are_those_of_our_own_loggers() -> None:
    """At `debug` our lines are there and a library's are not."""
    source = (
        "import logging; from everlens import logs; logs.begin('text', 'debug');"
        "logging.getLogger('service.x').debug('ours');"
        "logging.getLogger('urllib3').info('theirs');"
        "logging.getLogger('urllib3').warning('a warning')"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert [for_people(line) for line in done.stderr.splitlines()] == [
        ("DEBUG", "service.x: ours"),
        ("WARNING", "urllib3: a warning"),
    ]
