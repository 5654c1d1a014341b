"""Server-sent events over a real connection, line by line as a browser reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from service.events import LISTENERS_MAX
from tests.clients.conftest import teach
from tests.system.processes import PATIENCE_S, until

pytestmark = pytest.mark.system

NO_LOG = Path("no such log")


class Heard(NamedTuple):
    kind: str
    data: dict[str, Any]
    id: str


def heard(stream: httpx.Response) -> Iterator[Heard]:
    """Yield the events of a stream."""
    fields: dict[str, str] = {}
    for line in stream.iter_lines():
        name, _, value = line.partition(": ")
        if line and name:
            fields[name] = value
        elif not line and "data" in fields:
            yield Heard(fields["event"], json.loads(fields["data"]), fields.get("id", ""))
            fields = {}


def test_a_label_is_seen_to_be_learnt(url: str, pictures: dict[str, bytes]) -> None:
    """First the present state; then the version that a label makes, with its number as id."""
    with httpx.stream("GET", f"{url}/events", timeout=PATIENCE_S) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = heard(stream)
        first = next(events)
        assert ("version", str(first.data["version"])) == (first.kind, first.id)
        assert "learning" == next(event for event in events if event.kind != "version").kind
        teach(url, pictures["coffee"], "coffee")
        samples = httpx.get(f"{url}/versions", timeout=PATIENCE_S).json()["versions"][0]["samples"]
        seen = [int(first.id)]
        for event in events:
            if event.kind == "version":
                seen.append(int(event.id))
                if event.data["samples"] == samples:
                    break
        assert list(range(seen[0], seen[-1] + 1)) == seen
    again = {"Last-Event-ID": str(seen[0])}
    with httpx.stream("GET", f"{url}/events", headers=again, timeout=PATIENCE_S) as stream:
        events = heard(stream)
        assert seen[1:] == [int(next(events).id) for _ in seen[1:]]


def test_places_are_few_and_given_back(url: str) -> None:
    """One more than there are is a 503; who leaves gives the place to the next."""

    def ask() -> int:
        with httpx.stream("GET", f"{url}/events", timeout=PATIENCE_S) as stream:
            return stream.status_code

    def free() -> bool:
        return ask() == 200  # who left a moment ago is noticed a moment later

    until(free, PATIENCE_S, "to give a place", NO_LOG)
    with (
        ExitStack() as listening,
        httpx.Client(limits=httpx.Limits(max_connections=None)) as client,
    ):
        for _ in range(LISTENERS_MAX):
            answer = listening.enter_context(
                client.stream("GET", f"{url}/events", timeout=PATIENCE_S)
            )
            if answer.status_code != 200:
                break
        refused = client.get(f"{url}/events", timeout=PATIENCE_S)
        assert (503, "30") == (refused.status_code, refused.headers["retry-after"])
        assert "too many listen" in refused.json()["detail"]
    until(free, PATIENCE_S, "to give a place back", NO_LOG)
