"""The service does what its OpenAPI description says, whoever asks whatever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.folders import short_folder
from tests.fuzz.asking import requests_by_status, running, schemathesis
from tests.fuzz.examples import NotShown, ask_as_shown
from tests.system.processes import PATIENCE_S

pytestmark = [pytest.mark.system, pytest.mark.slow]

_SAME_EVERY_TIME = ["--generation-deterministic", "--max-examples", "30"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where everything of it lies."""
    with short_folder("fuzz") as folder:
        yield folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A running everlens."""
    with running(folder) as (_, url):
        yield url


def test_what_is_shown_works(url: str) -> None:
    """Each request that the description shows is answered as it says, and links lead to routes."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        document = client.get("/openapi.json").json()
        assert ask_as_shown(document, client) == []
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    links = [
        link["operationId"]
        for operation in operations
        for about in operation["responses"].values()
        for link in about.get("links", {}).values()
    ]
    assert links
    assert set(links) <= {operation["operationId"] for operation in operations}


def test_an_example_that_does_not_work_is_found(url: str) -> None:
    """An example with an unknown field, or none where one is needed, does not pass."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        document = client.get("/openapi.json").json()
        ask = document["paths"]["/classify"]["post"]["requestBody"]["content"]["application/json"]
        document["paths"] = {"/classify": document["paths"]["/classify"]}
        # The one that names its candidates, whatever is learnt by now.
        document["paths"]["/classify"]["post"]["requestBody"]["content"] = {"application/json": ask}
        ask["examples"]["one"]["value"]["lables"] = ["heron"]
        (complaint,) = ask_as_shown(document, client)
        assert "lables" in complaint
        ask["examples"]["one"]["x-status"] = 422
        assert ask_as_shown(document, client) == []
        del ask["examples"]
        with pytest.raises(NotShown):
            ask_as_shown(document, client)


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
    document = httpx.get(f"{url}/openapi.json", timeout=PATIENCE_S).json()
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
