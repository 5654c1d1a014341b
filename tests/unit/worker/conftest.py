"""A learner over a real server, a small random CLIP and real digits."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from everlens.bus.admission import Admission, AdmissionLimits, Admittable
from everlens.bus.connect import connect, connect_async
from everlens.bus.keys import Keys
from everlens.bus.stream import Stream
from everlens.bus.witness import Witness
from everlens.errors import LogUnavailable
from everlens.model.adapter import AdapterSpec
from everlens.model.backbone import Backbone
from everlens.model.fusion import Fusion
from everlens.pixels import Pixels, encode_pixels
from everlens.records import Receipt, Sample
from everlens.wire import encode_sample
from tests.pictures import NUMBERS, digits
from worker.generations import Generations
from worker.learn.class_weights import ClassWeightConfig
from worker.learn.learner import LearnerConfig
from worker.learn.tuning import TuningConfig
from worker.loop import Loop, Pace

LIMITS = AdmissionLimits(samples_max=1000, bytes_max=64 << 20, classes_max=1000)
PACE = Pace(
    batch_size=4,
    linger_s=0.01,
    adapter_every_rounds=3,
    adapter_idle_s=60.0,
    id_window=1000,
    copy_every_entries=1000,
)


@pytest.fixture
def client(log_url: str) -> Iterator[redis.Redis]:
    connection = connect(log_url)
    yield connection
    connection.close()


def digit_samples(count: int, size: int = 32) -> list[Sample]:
    """Return the first digits of the set, in its own order, as admitted samples."""
    grey_levels, numbers = digits()
    samples = []
    for k in range(count):
        grey = (grey_levels[k].reshape(8, 8) / 16 * 255).astype(np.uint8)
        pixels: Pixels = np.repeat(np.kron(grey, np.ones((4, 4), np.uint8))[:, :, None], 3, axis=2)
        assert pixels.shape == (size, size, 3)
        label = NUMBERS[numbers[k]]
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
            admission = Admission(
                connection, self.keys, LIMITS, Witness(self.directory / self.keys.namespace)
            )
            try:
                return await admission.admit(samples)
            finally:
                await connection.aclose()

        return asyncio.run(admit())

    def stream(self) -> Stream:
        """Return the learner's side of the log, without its lease."""
        return Stream(self.client, self.keys)

    def loop(
        self,
        name: str = "state",
        *,
        tune: str = "image",
        seed: int = 0,
        pace: Pace = PACE,
        backbone: Backbone | None = None,
        replay_bytes: int = 1 << 20,
        class_weights: ClassWeightConfig | None = None,
    ) -> Loop:
        """Return a learner over the state of this name."""
        config = LearnerConfig(
            AdapterSpec(tune=tune, top_blocks=2, rank=4, alpha=4.0),
            TuningConfig(
                seed=seed,
                learning_rate=1e-3,
                weight_decay=1e-5,
                steps=2,
                first_steps=8,
                replay_samples=4,
                new_per_class=3,
                contrast=1.0,
                augment=True,
                class_weights=class_weights,
            ),
            replay_bytes,
            Fusion(),
        )
        generations = Generations(self.directory / name / "learner.db")
        try:
            state = generations.open()
        except BaseException:
            generations.close()
            raise
        return Loop(
            backbone or self.backbone,
            config,
            pace,
            stream=Stream(self.client, self.keys),
            state=state,
            generations=generations,
            numerics="test",
        )


@pytest.fixture
def bench(
    log_url: str, namespace: str, client: redis.Redis, tiny_clip: Backbone, tmp_path: Path
) -> Bench:
    """One fresh log and the small model; no learner yet."""
    return fresh_bench(Bench(log_url, client, Keys(namespace), tiny_clip, tmp_path))


def fresh_bench(bench: Bench, suffix: str = "") -> Bench:
    """Return a bench over a log of its own, beside the given one."""
    keys = Keys(bench.keys.namespace + suffix)
    Stream(bench.client, keys).create()
    return replace(bench, keys=keys)


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


def finish(loop: Loop) -> Loop:
    """Let a learner take the rounds that it owes, and publish the adapter where that is due."""
    loop._stopping = lambda: False
    loop.adapter_clock.draw()
    assert loop._settle()
    if loop.progress.adapter_due:
        loop._publish_adapter()
    return loop


class Spoilt:
    """An exchange with the log that fails once, executed or not."""

    def __init__(self, real: Callable[..., Any], spoilt: int, *, executed: bool) -> None:
        self.real, self.spoilt, self.executed = real, spoilt, executed
        self.calls = 0

    def __call__(self, *arguments: object) -> Any:
        self.calls += 1
        answer = None
        if self.calls != self.spoilt or self.executed:
            answer = self.real(*arguments)
        if self.calls == self.spoilt:
            raise LogUnavailable("gone for a moment")
        return answer


def run_to(loop: Loop, cursor: int) -> Loop:
    """Learn up to an entry and no further."""
    loop.run(until_cursor(loop, cursor))
    return finish(loop)
