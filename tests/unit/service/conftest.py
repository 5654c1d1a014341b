"""A service over a real log and a small model, without a socket between it and the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from skimage import data

from everlens.bus.connect import connect
from everlens.bus.keys import Keys
from everlens.bus.stream import Stream
from everlens.bus.versions import Follower
from everlens.model.backbone import Backbone
from everlens.settings import Settings
from service.app import create_app
from tests.unit.service.api import Api, encoded

Start = Callable[..., AbstractAsyncContextManager[Api]]  # of settings, and a base model


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    """Photographs by what they show."""
    return {
        "astronaut": encoded(data.astronaut()),
        "cat": encoded(data.chelsea()),
        "coffee": encoded(data.coffee()),
        "rocket": encoded(data.rocket()),
    }


@pytest.fixture(scope="session")
def photo(photos: dict[str, bytes]) -> bytes:
    """A photograph as JPEG."""
    return photos["astronaut"]


@pytest.fixture
def settings(log_url: str, namespace: str, tmp_path: Path) -> Settings:
    """Settings of a service over the test's own log."""
    return settings_for(log_url, namespace, tmp_path)


def settings_for(log_url: str, namespace: str, data_dir: Path, **more: Any) -> Settings:
    """Return settings of a service for tests."""
    # One decoder, since each costs a fifth of a second; `test_decoding` has several.
    return Settings(redis_url=log_url, namespace=namespace, data_dir=data_dir, decoders=1, **more)


@asynccontextmanager
async def running(settings: Settings, backbone: Backbone, stream: Stream) -> AsyncIterator[Api]:
    """Run a service with these settings; it has looked for the newest version."""
    app = create_app(settings, lambda: backbone)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://everlens") as client,
    ):
        await app.state.service.settled.wait()
        yield Api(client, app.state.service, stream)


@asynccontextmanager
async def lasting(settings: Settings, backbone: Backbone) -> AsyncIterator[Api]:
    """Run a service over a log of its own, for tests that leave it as it was."""
    client = connect(settings.redis_url)
    stream = Stream(client, Keys(settings.namespace))
    assert stream.hold(stream.create(), "test")
    async with running(settings, backbone, stream) as api:
        yield api
    client.close()


@pytest.fixture
def started(stream: Stream, tiny_clip: Backbone) -> Start:
    """A context manager that runs a service with some settings."""

    def run(settings: Settings, backbone: Backbone = tiny_clip) -> AbstractAsyncContextManager[Api]:
        return running(settings, backbone, stream)

    return run


@pytest.fixture
async def api(started: Start, settings: Settings) -> AsyncIterator[Api]:
    """A running service with the default settings."""
    async with started(settings) as api:
        yield api


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the parts that a service has asked the log for, as it asks."""
    digests: list[str] = []
    part = Follower.part

    async def fetching(self: Follower, digest: str) -> bytes:
        digests.append(digest)
        return await part(self, digest)

    monkeypatch.setattr(Follower, "part", fetching)
    return digests
