"""Each request has an id: in its answer, in the lines of the log, and in what it failed with."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import pytest
from starlette.types import Message, Receive, Scope, Send

from everlens.logs import JsonLines
from service.tracking import Tracking
from tests.unit.service.api import Api

pytestmark = pytest.mark.anyio


@pytest.fixture
def lines():
    """What is written meanwhile, as JSON, from `debug` on."""
    written: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    handler, logger = Collecting(), logging.getLogger("service")
    handler.setFormatter(JsonLines())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in written]
    logger.removeHandler(handler)
    logger.setLevel(before)


async def test_every_answer_has_an_id(api: Api):
    """A short harmless id of the client comes back as it was, also with a refusal; any other is
    replaced.
    """
    for given in ("order-17:a/b.c_d=", "x", "a" * 128):
        for path in ("/livez", "/nowhere"):
            response = await api.client.get(path, headers={"X-Request-Id": given})
            assert response.headers.get_list("x-request-id") == [given]
    for given in ("", " ", "a" * 129, "a b", 'a"b', "a\tb", "naïve", "a,b"):
        headers = {b"X-Request-Id": given.encode("latin-1")}
        response = await api.client.get("/livez", headers=headers)
        assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"]), given


async def test_a_request_is_one_line_without_what_was_asked(api: Api, lines, photo):
    """Method, path, route, status and time; no query, and none for health checks."""
    await api.client.post(
        "/classify?labels=secret", content=photo, headers={"Content-Type": "image/jpeg"}
    )
    await api.client.get("/samples/x%22y?z=secret", headers={"X-Request-Id": "r7"})
    await api.client.get("/livez")
    asked, sample = [line for line in lines() if line["logger"] == "service.tracking"]
    assert (asked["method"], asked["path"], asked["status"]) == ("POST", "/classify", 200)
    assert 0 < asked["seconds"] < 30
    assert (sample["path"], sample["route"]) == ("/samples/x%22y", "/samples/{sample_id:path}")
    assert (sample["status"], sample["request_id"]) == (404, "r7")
    assert "secret" not in json.dumps(lines())


async def test_a_failure_names_the_request_whose_traceback_is_in_the_log(
    api: Api, lines, monkeypatch
):
    """Whoever shows us the answer shows us the place in the log."""

    async def fail():
        raise RuntimeError("the inside")

    monkeypatch.setattr(api.service.log, "backlog", fail)
    response = await api.client.get("/learning")
    request_id = response.headers["x-request-id"]
    assert response.status_code == 500
    assert request_id in response.json()["detail"]
    (failure,) = [line for line in lines() if line["level"] == "ERROR"]
    assert failure["request_id"] == request_id
    assert "RuntimeError: the inside" in failure["exception"]
    metrics = (await api.client.get("/openapi.json")).status_code
    assert metrics == 200  # the next one is served


async def test_a_decoder_that_dies_is_told_with_the_request_whose_picture_it_was(
    api: Api, lines, monkeypatch, photo
):
    """Also what a thread of the pool writes belongs to the request that it works for."""
    (decoder,) = api.service.decoding.decoders

    def torn(*_: object) -> bytes:
        raise ConnectionResetError

    assert decoder._child is not None
    monkeypatch.setattr(type(decoder._child), "receive", torn)
    response = await api.client.post(
        "/classify?labels=a",
        content=photo,
        headers={"Content-Type": "image/jpeg", "X-Request-Id": "deadly"},
    )
    assert response.status_code == 422
    (told,) = [line for line in lines() if "replaced" in line["message"]]
    assert told["request_id"] == "deadly"


@pytest.mark.parametrize(("method", "kind"), [("GET", "not-ready"), ("POST", "log-unavailable")])
async def test_what_is_cut_off_by_the_end_is_told_so(method: str, kind: str) -> None:
    """The server cancels what takes too long: of what was sent it is unknown what became."""
    sent: list[Message] = []

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/samples", "headers": []}
    asked = asyncio.create_task(Tracking(endless)(scope, _nothing, send))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait({asked})

    assert sent[0]["status"] == 503
    assert (b"retry-after", b"1") in sent[0]["headers"]
    problem = json.loads(sent[1]["body"])
    assert problem["type"] == f"/problems/{kind}"
    assert "stopping" in problem["detail"]


async def _nothing() -> Message:
    raise AssertionError("the body is not read")
