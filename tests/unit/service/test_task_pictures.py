"""Pictures of tasks are fetched from one address that the settings name, and from nowhere else."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from service.task_pictures import NoPicture, Studio, TaskPictures

pytestmark = pytest.mark.anyio

TOKEN = "0123456789abcdef"
PERSONAL = "eyJhbGciOi.eyJ0b2tlbl90.c2lnbmF0dXJl"
PICTURE = b"\xff\xd8 a picture"


class Server(http.server.BaseHTTPRequestHandler):
    """What of Label Studio gives pictures: by token, and some by a redirect to elsewhere."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        who = self.headers.get("Authorization", "")
        self.asked.append((self.path, who))
        if who not in {f"Token {TOKEN}", "Bearer access"}:
            self._answer(401, b"")
        elif self.path.endswith("/away.jpg"):
            self._answer(302, b"", "http://127.0.0.1:9/elsewhere.jpg")
        elif self.path.endswith("/large.jpg"):
            self._answer(200, bytes(2000))
        else:
            self._answer(200, PICTURE)

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, sent["refresh"]))
        good = sent["refresh"] == PERSONAL
        self._answer(200 if good else 401, b'{"access": "access"}' if good else b'{"detail": ""}')

    def _answer(self, status: int, content: bytes, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def studio() -> Iterator[tuple[str, type[Server]]]:
    """Its address, and what it was asked."""
    Server.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}", Server
    server.shutdown()
    serving.join()
    server.server_close()


async def read(url: str, reference: object, token: str = TOKEN) -> bytes:
    pictures = TaskPictures(Studio(url, token, bytes_max=1000) if url else None)
    try:
        return await pictures.read(reference)
    finally:
        await pictures.close()


async def test_a_data_uri_is_read_with_no_address_set():
    uri = f"data:image/jpeg;base64,{base64.b64encode(PICTURE).decode()}"
    assert PICTURE == await read("", uri)


@pytest.mark.parametrize("token", [TOKEN, PERSONAL])
async def test_what_lies_there_is_fetched(studio, token: str):
    """By path or by whole address, with a legacy token or with the access that a personal one makes."""
    url, asked = studio
    assert PICTURE == await read(url, "/data/upload/1/cat.jpg", token)
    assert PICTURE == await read(url, f"{url}/tasks/3/resolve/?fileuri=czM6Ly8=", token)
    assert "/tasks/3/resolve/?fileuri=czM6Ly8=" == asked.asked[-1][0]


async def test_access_is_asked_for_once_in_a_while(studio):
    """A personal token makes an access token that is good for several pictures."""
    url, asked = studio
    asked.asked.clear()
    pictures = TaskPictures(Studio(url, PERSONAL, bytes_max=1000))
    for _ in range(3):
        await pictures.read("/data/upload/1/cat.jpg")
    await pictures.close()
    assert 1 == [path for path, _ in asked.asked].count("/api/token/refresh")


@pytest.mark.parametrize(
    "reference",
    [
        "http://127.0.0.1:9/data/upload/1/cat.jpg",
        "https://{host}/data/upload/1/cat.jpg",
        "//example.com/data/upload/1/cat.jpg",
        "http://example.com@{host}/data/upload/1/cat.jpg",
        "http://{host}@example.com/data/upload/1/cat.jpg",
        "http://{host}.example.com/data/cat.jpg",
        "/api/projects",
        "/data/../api/projects",
        "/data/%2e%2e/api/projects",
        "/data/..%2fapi/projects",
        "\\\\example.com\\data\\cat.jpg",
        "/data\\..\\api",
        "/data/%252e%252e/../../api",
        "/data/..",
        "/data/%2e%2e",
        "file:///etc/passwd",
        "s3://bucket/data/cat.jpg",
        "http://[::1/data/cat.jpg",
        "\x00",
        "",
        None,
        7,
    ],
)
async def test_nothing_else_is_asked_for(studio, reference: object):
    """Neither another host nor another part of Label Studio hears of us, whatever a task says."""
    url, asked = studio
    asked.asked.clear()
    if isinstance(reference, str):
        reference = reference.replace("{host}", url.removeprefix("http://"))
    with pytest.raises(NoPicture):
        await read(url, reference)
    assert [] == asked.asked


@pytest.mark.parametrize(
    ("reference", "token", "sentence"),
    [
        ("/data/upload/1/away.jpg", TOKEN, "answers 302"),
        ("/data/upload/1/large.jpg", TOKEN, "more than 1000 bytes"),
        ("/data/upload/1/cat.jpg", "wrong", "EVERLENS_LABEL_STUDIO_TOKEN"),
        ("/data/upload/1/cat.jpg", "wrong.personal.token", "personal access token"),
        ("data:image/jpeg,cat", TOKEN, "not base64"),
    ],
)
async def test_what_cannot_be_had_is_said(studio, reference: str, token: str, sentence: str):
    """No redirect is followed, no more is read than a picture may have."""
    url, _ = studio
    with pytest.raises(NoPicture, match=sentence):
        await read(url, reference, token)


async def test_a_studio_that_is_away_is_no_fault_of_ours():
    with pytest.raises(NoPicture, match="does not give"):
        await read("http://127.0.0.1:9", "/data/upload/1/cat.jpg")


async def test_without_an_address_none_is_fetched():
    with pytest.raises(NoPicture, match="EVERLENS_LABEL_STUDIO_URL"):
        await read("", "/data/upload/1/cat.jpg")
