"""`python -m service` as a process: its refusals, its one line, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from skimage import data

from everlens.bus.stream import Stream
from everlens.errors import SettingsError
from everlens.keys import add_key, revoke_key
from everlens.settings import Settings
from service.__main__ import check_address
from tests.system.processes import PATIENCE_S, free_port
from tests.unit.service.api import encoded

pytestmark = pytest.mark.system


def start(**settings: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if "EVERLENS" not in name}
    environment |= {f"EVERLENS_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "service"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def running(
    stream: Stream, log_url: str, namespace: str, tiny_folder: str, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that is ready, and its address."""
    port = free_port()
    process = start(
        redis_url=log_url,
        namespace=namespace,
        model=tiny_folder,
        pretrained="random",
        port=str(port),
        data_dir=str(tmp_path),
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert f"http://127.0.0.1:{port}" in line
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.communicate()


def test_a_signal_ends_it_in_order(running):
    """SIGTERM ends the process, with status 0 and no traceback."""
    process, url = running
    assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "Traceback" not in said


def test_a_waiting_query_does_not_hold_the_end_up(running):
    """At SIGINT a client that waits to read its own write is told at once to ask again."""
    process, url = running
    photo = encoded(data.coffee())
    sample: dict[str, Any] = {"data": {"label": "cup"}, "files": {"image": photo}}
    assert httpx.post(f"{url}/samples", **sample, timeout=PATIENCE_S).is_success
    request = (
        f"POST /classify?labels=a&wait_for=1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}"
    )
    head = f"{request}\r\nContent-Type: image/jpeg\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as waiting:
        waiting.sendall(head.encode() + photo)
        under_way = "everlens_http_requests_in_flight 2.0"  # it, and who looks
        while under_way not in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text:
            pass
        process.send_signal(signal.SIGINT)
        answer = b"".join(iter(lambda: waiting.recv(65536), b""))
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer.lower()
    assert b"the service is stopping" in answer
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "EVERLENS_REDIS_URL"),
        ({"redis_url": "unix:///x", "host": "0.0.0.0"}, "EVERLENS_ALLOW_REMOTE"),
        ({"redis_url": "unix:///x", "keys_file": "/nowhere/keys.json"}, "everlens keys add"),
        ({"redis_url": "unix:///x", "keys_file": "/"}, "cannot read the API keys"),
        ({"redis_url": "unix:///x", "prot": "1"}, "EVERLENS_PROT"),
        ({"redis_url": "unix:///x", "port": "many"}, "EVERLENS_PORT"),
        ({"redis_url": "unix:///x", "device": "abacus"}, "EVERLENS_DEVICE"),
        ({"redis_url": "unix:///x", "model": "no-such-model"}, "EVERLENS_PRETRAINED"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(settings, said):
    """A wrong setting or model is one line and status 2, never a traceback."""
    process = start(**({"port": str(free_port())} | settings))
    out, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in error
    assert "Traceback" not in out + error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "everlens.example"])
def test_other_machines_are_let_in_only_on_purpose(host, tmp_path):
    """An address that others can reach needs keys or `allow_remote`; loopback needs nothing."""
    there = Settings(redis_url="unix:///x", data_dir=tmp_path)
    elsewhere = there.model_copy(update={"host": host})
    with pytest.raises(SettingsError, match="EVERLENS_ALLOW_REMOTE"):
        check_address(elsewhere)
    check_address(elsewhere.model_copy(update={"allow_remote": True}))
    for loopback in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        check_address(there.model_copy(update={"host": loopback}))
    key, _ = add_key(there.keys_path, "somebody", now=datetime.now(UTC))
    check_address(elsewhere)
    revoke_key(there.keys_path, key.id)
    check_address(elsewhere)  # nobody gets in, which is safe


def test_a_flood_of_strangers_is_answered_and_the_key_goes_on(
    stream: Stream, log_url: str, namespace: str, tiny_folder: str, tmp_path: Path
):
    """Over a real socket, with bodies of both sizes: strangers hear 401 or 429, the key 200."""
    _, token = add_key(tmp_path / "keys.json", "somebody", now=datetime.now(UTC))
    port = free_port()
    process = start(
        redis_url=log_url,
        namespace=namespace,
        model=tiny_folder,
        pretrained="random",
        port=str(port),
        data_dir=str(tmp_path),
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline()
        url = f"http://127.0.0.1:{port}/classify"
        photo = encoded(data.coffee())
        form: dict[str, Any] = {"files": {"image": photo}, "data": {"labels": ["cup", "dog"]}}
        with (
            httpx.Client(timeout=PATIENCE_S) as stranger,
            httpx.Client(timeout=PATIENCE_S) as friend,
        ):
            friend.headers = httpx.Headers({"Authorization": f"Bearer {token}"})
            heard = set()
            for number in range(60):
                content = bytes(8_000_000 if number % 20 == 0 else 50_000)
                heard.add(stranger.post(url, content=content).status_code)
                if number % 10 == 0:
                    assert friend.post(url, **form).status_code == 200
        assert heard == {401, 429}
    finally:
        process.kill()
        said = "".join(process.communicate())
    assert "Traceback" not in said
    assert token not in said
