"""A learner over a real server, a small random CLIP and real digits."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import redis
import torch
from sklearn.datasets import load_digits

from everlens.bus.admission import Admission, Admittable
from everlens.bus.connect import connect, connect_async
from everlens.bus.keys import Keys
from everlens.bus.server import EmbeddedServer
from everlens.bus.stream import Stream
from everlens.model.adapter import AdapterSpec
from everlens.model.backbone import Backbone, load_backbone
from everlens.model.fusion import Fusion
from everlens.pixels import Pixels, encode_pixels
from everlens.records import Receipt, Sample
from everlens.wire import encode_sample
from tests.tiny_clip import write_tiny_clip
from worker.commit import StateFile
from worker.learn.learner import LearnerConfig
from worker.learn.tuning import TuningConfig
from worker.loop import Loop, Pace

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PACE = Pace(
    batch_size=4, linger_s=0.01, adapter_every_batches=3, adapter_idle_s=60.0, id_window=1000
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    embedded = EmbeddedServer(tmp_path_factory.mktemp("redis"), maxmemory_bytes=256 << 20)
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = write_tiny_clip(tmp_path_factory.mktemp("tiny"))
    return load_backbone(str(folder), "random", device=torch.device("cpu"))


@pytest.fixture
def keys() -> Keys:
    return Keys(f"test-{uuid.uuid4().hex}")


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    connection = connect(server.url)
    yield connection
    connection.close()


def digit_samples(count: int, size: int = 32) -> list[Sample]:
    """Return the first digits of the set, in its own order, as admitted samples."""
    digits = load_digits()
    samples = []
    for k in range(count):
        grey = (digits.images[k] / 16 * 255).astype(np.uint8)
        pixels: Pixels = np.repeat(np.kron(grey, np.ones((4, 4), np.uint8))[:, :, None], 3, axis=2)
        assert pixels.shape == (size, size, 3)
        label = NUMBERS[int(digits.target[k])]
        samples.append(Sample(f"digit-{k}", label, encode_pixels(pixels)))
    return samples


@dataclass
class Bench:
    """What a test of the loop needs: one log, any number of learners over it."""

    url: str
    client: redis.Redis
    keys: Keys
    backbone: Backbone
    directory: Path

    def admit(self, samples: Sequence[Sample]) -> list[Receipt]:
        """Append samples through the real admission script."""
        admittable = [
            Admittable(s.id, hashlib.sha256(s.image).hexdigest(), encode_sample(s)) for s in samples
        ]
        return self.admit_payloads(admittable)

    def admit_payloads(self, samples: Sequence[Admittable]) -> list[Receipt]:
        async def admit() -> list[Receipt]:
            connection = connect_async(self.url)
            admission = Admission(connection, self.keys, samples_max=1000, bytes_max=64 << 20)
            try:
                return await admission.admit(samples)
            finally:
                await connection.aclose()

        return asyncio.run(admit())

    def loop(
        self,
        name: str = "state",
        *,
        tune: str = "image",
        seed: int = 0,
        pace: Pace = PACE,
        backbone: Backbone | None = None,
        replay_bytes: int = 1 << 20,
    ) -> Loop:
        """Return a learner over the state of this name."""
        config = LearnerConfig(
            AdapterSpec(tune=tune, top_blocks=2, rank=4, alpha=4.0),
            TuningConfig(
                seed=seed, learning_rate=1e-3, weight_decay=1e-5, steps=2, replay_samples=4
            ),
            replay_bytes,
        )
        return Loop(
            backbone or self.backbone,
            config,
            Fusion(),
            pace,
            stream=Stream(self.client, self.keys),
            state=StateFile(self.directory / name / "learner.db"),
            numerics="test",
        )


@pytest.fixture
def bench(
    server: EmbeddedServer, client: redis.Redis, keys: Keys, backbone: Backbone, tmp_path: Path
) -> Bench:
    stream = Stream(client, keys)
    stream.create()
    return Bench(server.url, client, keys, backbone, tmp_path)


def until_cursor(loop: Loop, cursor: int, turns_max: int = 500) -> Callable[[], bool]:
    """Return a stop condition: the learner has published everything up to this entry."""
    turns = 0

    def stopping() -> bool:
        nonlocal turns
        turns += 1
        assert turns < turns_max, "the learner does not get there"
        there = hasattr(loop, "progress") and loop.progress.cursor >= cursor
        return there and loop.unpublished is None

    return stopping
