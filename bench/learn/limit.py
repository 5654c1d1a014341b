"""
The limit: what no learner of this kind can do without, and nothing else.

The trunk once for the new pictures; then, for the pictures of each step, the top forward and the
gradient with respect to its input. No adapter, no loss, no optimiser, no evidence, no replay buffer,
and the frozen top is not asked about the new pictures.
"""

from __future__ import annotations

import torch

from bench.learn.clock import Timing, timed
from bench.learn.feed import Feed
from everlens.model.adapter import removed
from everlens.model.tower import Encoding, Hidden


class Limit:
    """The passes of one batch over the same towers as a feed's learner, in the same precision."""

    def __init__(self, feed: Feed) -> None:
        backbone = self.backbone = feed.backbone
        blocks = feed.learner.config.adapter.top_blocks
        self.trunk, _ = backbone.answering_tower.cut(blocks)
        self.top = removed(feed.learner.tuner.image_top)
        self.images = backbone.images(feed.pictures(feed.settings.batch_size))
        self.half = backbone.precision == torch.bfloat16

    def run(self, company: int, steps: int) -> Timing:
        """Return how long the passes of one batch take."""
        return timed(lambda: self._passes(company, steps), self.backbone.device)[1]

    def _passes(self, company: int, steps: int) -> None:
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.half):
            with torch.no_grad():
                fresh: Hidden = self.trunk(self.images)
            repeats = -(-company // len(fresh.states))
            states = torch.cat([fresh.states.float()] * repeats)[:company]
            for _ in range(steps):
                inputs = states.detach().requires_grad_()
                encoding: Encoding = self.top(Hidden(inputs))
                torch.autograd.grad(encoding.embedding_BE.float().sum(), inputs)
