"""
The worker's own learner, fed with random pictures; the one place of this bench that knows how.

The learner is timed as the worker calls it, `observe` and then `tune`; what lies between them (the
version that its evidence makes) is measured with the commit, in `commits.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bench.learn.clock import Timing, timed
from bench.replica import FILE, Replica
from everlens.model.backbone import Backbone
from everlens.pixels import Pixels
from everlens.settings import Settings
from worker.__main__ import learner_config
from worker.learn.learner import LabelledPixels, LearnerConfig, Observation
from worker.learn.tuning import WARM_UP_STEPS
from worker.publication import evidence_parts, next_manifest

CLASSES = 8  # among the new samples of a batch, two of each


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch; `company` is how many pictures each of its SIT steps saw."""

    observe: Timing
    tune: Timing
    company: int
    steps: int

    @property
    def timing(self) -> Timing:
        """Both halves."""
        return self.observe + self.tune


class Feed(Replica):
    """
    A learner that never publishes but on demand, and a batch for it whenever one is wanted.

    Args:
        backbone: the base model.
        settings: the shipped ones, where nothing else is asked for.
    """

    def __init__(self, backbone: Backbone, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        config: LearnerConfig = learner_config(self.settings, backbone)
        super().__init__(backbone, config, adapter_every_batches=1_000_000)
        # As it learns for the rest of its life: the first batches take more steps.
        self.learner.tuner.steps_drawn = WARM_UP_STEPS
        self._random = np.random.default_rng(0)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.device

    def pictures(self, count: int) -> list[Pixels]:
        """Return random pictures of the model's size."""
        size = self.backbone.pixels.size
        return [
            self._random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)
        ]

    def batch(self) -> list[LabelledPixels]:
        """Return the next full batch of new samples."""
        samples = []
        for place, pixels in enumerate(self.pictures(self.settings.batch_size)):
            self.seq += 1
            label = f"class {place % CLASSES}"
            samples.append(LabelledPixels(self.seq, str(self.seq), label, None, FILE, pixels))
        return samples

    def warm(self) -> Feed:
        """Learn a batch and publish the adapter, so that a version has all three experts."""
        self.turn()
        return self._published()

    def ready(self) -> Feed:
        """Have all three experts likewise, after a batch of which one step was taken."""
        self.take()
        if (drawn := self.learner.draw()) is not None:
            self.learner.take(drawn.steps[0])
        return self._published()

    def _published(self) -> Feed:
        self.moved = True
        self.publish_adapter(judge=False)
        return self

    def turn(self) -> Turn:
        """Learn one batch; return how long each half took."""
        company, observing = self.take()
        losses, tuning = timed(self.learner.tune, self.device)
        return Turn(observing, tuning, company, len(losses))

    def take(self) -> tuple[int, Timing]:
        """Observe a batch and publish; return how many pictures its steps will see, and the time."""
        batch = self.batch()
        observation, observing = timed(
            lambda: self.learner.observe(batch, self.snapshot), self.device
        )
        self._publish(observation)
        held_out = sum(exemplar.held_out for exemplar in observation.buffer.added)
        return self.settings.replay_samples + len(batch) - held_out, observing

    def _publish(self, observation: Observation) -> None:
        parts = evidence_parts(self.learner, observation)
        self._exchange(next_manifest(self.learner, self.progress, parts, cursor=self.seq), parts)
