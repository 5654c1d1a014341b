"""What tests of several rooms share: a real server of the log, and a small base model."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import pytest
import torch

from bench.tiny_clip import write_tiny_clip
from everlens.bus.connect import connect
from everlens.bus.keys import Keys
from everlens.bus.server import EmbeddedServer
from everlens.bus.stream import Stream
from everlens.model.backbone import Backbone, load_backbone
from tests.folders import quick


def pytest_configure() -> None:
    """Let `tmp_path` be quick to sync, and what tests start hear Ctrl-C."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(quick()))
    # Who runs them in a script's background has it ignored, and so would all children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first: of two workers none has a long one left at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio alone."""
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds the configuration of a small ViT, for `pretrained="random"`."""
    return str(write_tiny_clip(tmp_path_factory.mktemp("tiny") / "tiny-vit"))


@pytest.fixture(scope="session")
def tiny_clip(tiny_folder: str) -> Backbone:
    """A small randomly initialised CLIP; the same weights in every process."""
    return load_backbone(tiny_folder, "random", device=torch.device("cpu"))


@pytest.fixture(scope="session")
def log_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one embedded server for all tests."""
    server = EmbeddedServer(tmp_path_factory.mktemp("log"), maxmemory_bytes=256 * 2**20)
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def stream(log_url: str, namespace: str) -> Iterator[Stream]:
    """The learner's side of a fresh log, with its lease held."""
    client = connect(log_url)
    stream = Stream(client, Keys(namespace))
    assert stream.hold(stream.create(), "test")
    yield stream
    client.close()
