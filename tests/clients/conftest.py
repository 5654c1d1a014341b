"""One everlens for all these tests: server of the log, learner and service, as `make up` has them."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from tests.folders import short_folder
from tests.fuzz.asking import running
from tests.pictures import PHOTOGRAPHS, photograph
from tests.system.processes import PATIENCE_S, free_port


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    """Where everything of it lies."""
    with short_folder("clients") as folder:
        yield folder


@pytest.fixture(scope="package")
def studio_port() -> int:
    """Where the Label Studio is that it may fetch pictures from, once a test starts one."""
    return free_port()


@pytest.fixture(scope="package")
def url(folder: Path, studio_port: int) -> Iterator[str]:
    """The address of a running everlens with a tiny CLIP; adapters come as soon as they may."""
    settings = {
        "adapter_idle_s": "0.2",
        "adapter_every_rounds": "1",
        "label_studio_url": f"http://127.0.0.1:{studio_port}",
        "label_studio_token": "of-the-tests",
    }
    with running(folder, **settings) as (_, url):
        yield url


@pytest.fixture
def log(folder: Path) -> str:
    """The address of its log."""
    return f"unix://{folder}/data/redis/redis.sock"


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """Photographs as JPEG, by what they show."""
    return {name: _jpeg(name) for name in PHOTOGRAPHS}


Answered = TypeVar("Answered")


def at_one_version(url: str, ask: Callable[[], Answered]) -> Answered:
    """Return what was asked while no other version came; adapters are published when they like."""
    for _ in range(20):
        before = httpx.get(f"{url}/readyz", timeout=PATIENCE_S).json()["version"]
        answered = ask()
        if before == httpx.get(f"{url}/readyz", timeout=PATIENCE_S).json()["version"]:
            return answered
    raise AssertionError("versions come faster than answers")


def _jpeg(name: str) -> bytes:
    file = io.BytesIO()
    photograph(name).resize((96, 72)).save(file, "JPEG", quality=95)
    return file.getvalue()


def teach(url: str, picture: bytes, label: str) -> None:
    """Return when a picture is learnt as this."""
    sample = {"label": label, "id": uuid.uuid4().hex}
    waiting = {"wait_for": sample["id"]}
    for route, data in (("samples", sample), ("classify", waiting)):
        files = {"image": picture}
        answer = httpx.post(f"{url}/{route}", data=data, files=files, timeout=PATIENCE_S)
        answer.raise_for_status()
