"""The client, with a service played at its door (httpx.MockTransport)."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from everlens.client import ApiError, Client, Image, KnownClass, Prediction, Receipt
from everlens.errors import SettingsError

PICTURE = b"the bytes of a picture"
ANSWER = {
    "predictions": [{"label": "cat", "score": 0.9, "samples": 3}],
    "known": 0.8,
    "version": 4,
    "learned_through": 17,
    "model": "starter",
    "prediction_id": "p1",
}


class Door:
    """Answers requests with what it is told, in turn, and keeps what was asked."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return next(self.answers)

    def body(self, number: int = 0) -> Any:
        """Return the JSON of one request."""
        return json.loads(self.requests[number].content)


def to(door: Callable[[httpx.Request], httpx.Response], patience_s: float = 60.0) -> Client:
    """Return a client whose network is `door`."""
    transport = httpx.MockTransport(door)
    return Client("http://service", patience_s=patience_s, transport=transport)


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the client, none of which is waited."""
    waits: list[float] = []
    monkeypatch.setattr("everlens.client.time.sleep", waits.append)
    return waits


def test_classify_sends_what_was_asked_and_nothing_else() -> None:
    """Fields that were not given are left to the service's defaults."""
    door = Door(httpx.Response(200, json=ANSWER))

    answer = to(door).classify(PICTURE, ["cat", "dog"], top=1, version=0)

    assert door.requests[0].url.path == "/classify"
    assert door.body() == {
        "image": base64.b64encode(PICTURE).decode(),
        "labels": ["cat", "dog"],
        "top": 1,
        "version": 0,
    }
    assert answer.best == Prediction("cat", 0.9, 3)
    assert (answer.version, answer.learned_through) == (4, 17)
    assert answer.known == 0.8


def test_an_answer_before_the_first_class_knows_nothing_of_it() -> None:
    """`known` is None where the service says null, and is not taken for zero."""
    door = Door(httpx.Response(200, json=ANSWER | {"known": None}))

    assert to(door).classify(PICTURE).known is None


def test_answer_of_a_newer_service_is_read() -> None:
    """A field that this client does not know is no error."""
    door = Door(httpx.Response(200, json=ANSWER | {"mood": "fine"}))

    assert to(door).classify(PICTURE).model == "starter"


def test_full_queue_is_waited_for_with_the_same_id(slept: list[float]) -> None:
    """After 429 and 503 the sample goes again, under the same id, after the named time."""
    later = [
        httpx.Response(429, headers={"Retry-After": "7"}, json={"title": "full"}),
        httpx.Response(503, json={"title": "away"}),
    ]
    door = Door(*later, httpx.Response(202, json={"id": "x", "seq": 5, "status": "accepted"}))

    receipt = to(door).learn(PICTURE, "cat")

    assert receipt == Receipt("x", 5, "accepted")
    assert slept == [7.0, 0.5]
    assert len({door.body(n)["id"] for n in range(3)}) == 1


def test_patience_ends() -> None:
    """A wait longer than the patience is not begun: the refusal is raised at once."""
    door = Door(httpx.Response(429, headers={"Retry-After": "30"}, json={"title": "full"}))

    with pytest.raises(ApiError) as refused:
        to(door, patience_s=10).learn(PICTURE, "cat")

    assert refused.value.status == 429
    assert len(door.requests) == 1


def test_problem_document_becomes_an_error() -> None:
    """Status, title, detail and type of a problem document are the error's."""
    problem = {"type": "/problems/x", "title": "No class", "status": 409, "detail": "Name some."}
    door = Door(httpx.Response(409, json=problem))

    with pytest.raises(ApiError) as refused:
        to(door).classify(PICTURE)

    error = refused.value
    assert (error.status, error.title, error.detail) == (409, "No class", "Name some.")
    assert (error.type, str(error)) == ("/problems/x", "No class: Name some.")


def test_answer_of_something_else_becomes_an_error() -> None:
    """A page of a proxy in between is an error with its status, not a crash."""
    door = Door(httpx.Response(502, text="<html>"))

    with pytest.raises(ApiError) as refused:
        to(door).classes()

    assert (refused.value.status, refused.value.title) == (502, "Bad Gateway")


def test_unreachable_service_is_status_zero() -> None:
    """A refused connection is an error that names the address."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ApiError, match="http://service") as refused:
        to(refuse).classes()

    assert refused.value.status == 0
    assert not to(refuse).ready()


def test_many_samples_go_in_requests_that_the_service_takes() -> None:
    """A long list is cut by number and by bytes; the receipts come in order."""

    def accept(request: httpx.Request) -> httpx.Response:
        sizes.append(len(request.content))
        samples = json.loads(request.content)
        return httpx.Response(202, json=[receipt(sample) for sample in samples])

    def receipt(sample: dict[str, str]) -> dict[str, Any]:
        return {"id": sample["id"], "seq": next(numbers), "status": "accepted"}

    sizes: list[int] = []
    numbers = itertools.count(1)
    large = b"x" * (3 * 2**20)

    small_receipts = list(to(accept).learn_many((PICTURE, "cat") for _ in range(130)))
    small_requests = len(sizes)
    large_receipts = list(to(accept).learn_many((large, "cat") for _ in range(5)))

    assert [r.seq for r in small_receipts + large_receipts] == list(range(1, 136))
    assert small_requests == 3
    assert max(sizes) < 12 * 2**20


def test_wait_ends_when_the_sample_is_learnt_or_dead() -> None:
    """The state is asked for again until it is final; ids are quoted in the path."""
    states = [
        {"id": "a/b", "seq": 1, "status": "accepted"},
        {"id": "a/b", "seq": 1, "status": "dead", "reason": "damaged"},
    ]
    door = Door(*(httpx.Response(200, json=state) for state in states))

    state = to(door).wait("a/b")

    assert (state.status, state.reason) == ("dead", "damaged")
    assert door.requests[0].url.raw_path == b"/samples/a%2Fb"


def test_wait_gives_up() -> None:
    """A sample that is not learnt in time is an error with status 504."""
    door = Door(httpx.Response(200, json={"id": "x", "seq": 1, "status": "accepted"}))

    with pytest.raises(ApiError) as late:
        to(door).wait("x", within_s=0)

    assert late.value.status == 504


def test_classes_are_records() -> None:
    """The learnt classes come with their numbers of labels."""
    body = {"classes": [{"label": "cat", "samples": 2, "index": 0}], "version": 1}

    assert to(Door(httpx.Response(200, json=body))).classes() == [KnownClass("cat", 2)]


def _sent(image: Image) -> bytes:
    door = Door(httpx.Response(200, json=ANSWER))
    to(door).classify(image)
    return base64.b64decode(door.body()["image"])


def test_files_are_sent_as_they_are(tmp_path: Path) -> None:
    """Bytes and paths reach the service unchanged."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(PICTURE)

    assert [_sent(PICTURE), _sent(path), _sent(str(path))] == [PICTURE] * 3


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_pixels_are_sent_as_a_picture(mode: str) -> None:
    """Pillow images of any mode, and arrays, become a file with nearly the same pixels."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (64, 1))] * 3, axis=2)
    image = PIL.Image.fromarray(pixels).convert(mode)

    sent = [_sent(image)] + ([_sent(np.asarray(image))] if mode in {"RGB", "L"} else [])

    for file in sent:
        with PIL.Image.open(io.BytesIO(file)) as opened:
            received = np.asarray(opened.convert("RGB"), dtype=int)
        assert np.abs(received - np.asarray(image.convert("RGB"), dtype=int)).mean() <= 2


def test_numbers_that_are_no_pixels_are_refused() -> None:
    """An array of another type or shape is the caller's mistake, said before it is sent."""
    with pytest.raises(TypeError, match="uint8"):
        _sent(np.zeros((4, 4, 3), dtype=np.float32))


def test_a_key_is_shown_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the call, else that of the environment, else none; the health check too."""
    door = Door(httpx.Response(200, json={"classes": []}))
    transport = httpx.MockTransport(door)
    monkeypatch.setenv("EVERLENS_API_KEY", "evl_of_the_environment\n")
    Client("http://service", api_key="evl_of_the_call", transport=transport).classes()
    Client("http://service", transport=transport).ready()
    Client("http://service", api_key="", transport=transport).classes()
    monkeypatch.delenv("EVERLENS_API_KEY")
    Client("http://service", transport=transport).classes()

    assert [request.headers.get("authorization") for request in door.requests] == [
        "Bearer evl_of_the_call",
        "Bearer evl_of_the_environment",
        None,
        None,
    ]


@pytest.mark.parametrize("key", ["evl_ä", "evl_a\nHost: b", "evl_\x00"])
def test_what_is_no_key_is_refused_without_being_told(key: str) -> None:
    """Bytes that no header holds are an error before anything is sent, which does not repeat them."""
    with pytest.raises(SettingsError, match="EVERLENS_API_KEY") as refused:
        Client("http://service", api_key=key)
    assert key not in str(refused.value)
