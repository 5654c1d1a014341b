"""The service does what its OpenAPI description says, whoever asks whatever."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fuzz.asking import requests_by_status, running, schemathesis

pytestmark = [pytest.mark.system, pytest.mark.slow]

_SAME_EVERY_TIME = ["--generation-deterministic", "--max-examples", "30"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a unix socket."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fuzz-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A running everlens."""
    with running(folder) as (_, url):
        yield url


def test_every_answer_is_a_documented_one(folder: Path, url: str) -> None:
    """No status, content type or field that is not described, and no 5xx but 503 and 504."""
    run = schemathesis(folder, url, "run", f"{url}/openapi.json", *_SAME_EVERY_TIME)
    try:
        assert run.wait(240) == 0, run.said()
    finally:
        run.end()
    answered = requests_by_status(url)
    assert answered.total() > 500
    # Asked well enough to be answered, and not only to be refused.
    assert {"200", "202", "400", "404", "405", "415", "422"} <= set(answered)
    assert not {status for status in answered if status[0] == "5"} - {"503", "504"}


@pytest.mark.parametrize("spoilt", ["a status", "a field", "a content type"])
def test_an_answer_that_is_not_documented_is_found(folder: Path, url: str, spoilt: str) -> None:
    """The same run fails against a description that lacks something, so it can fail."""
    document = httpx.get(f"{url}/openapi.json").json()
    answers = document["paths"]["/livez"]["get"]["responses"]
    if spoilt == "a status":
        del answers["200"]
    elif spoilt == "a field":
        del document["components"]["schemas"]["AliveOut"]["properties"]["status"]
        del document["components"]["schemas"]["AliveOut"]["required"]
    else:
        answers["200"]["content"]["text/plain"] = answers["200"]["content"].pop("application/json")
    path = folder / "openapi.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    words = ["run", str(path), "--include-path", "/livez", *_SAME_EVERY_TIME]
    run = schemathesis(folder, url, *words)
    try:
        assert run.wait(120) == 1, run.said()
    finally:
        run.end()
    assert "GET /livez" in run.said()
