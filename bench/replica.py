"""
The worker's learner and the served snapshot in one process, without a log: for accuracy.

The very `Learner`, parts and `Snapshot` that run in production, fed batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from everlens.artifact import Manifest, digest_of
from everlens.model.backbone import Backbone
from everlens.model.parts import build_snapshot
from everlens.model.snapshot import Views, base_snapshot
from everlens.pixels import Pixels
from worker.commit import Progress
from worker.learn.learner import LabelledPixels, Learner, LearnerConfig
from worker.publication import adapter_parts, evidence_parts, judged, next_manifest

# Stands for the picture's file in the replay buffer, whose budget counts bytes.
FILE = bytes(20_000)


class Replica:
    """A learner and the version that it published last."""

    def __init__(
        self, backbone: Backbone, config: LearnerConfig, *, adapter_every_batches: int
    ) -> None:
        self.backbone = backbone
        self.learner = Learner(backbone, config)
        self.adapter_every_batches = adapter_every_batches
        self.progress = Progress("", "", backbone.fingerprint, "")
        self.snapshot = base_snapshot(backbone, config.adapter.top_blocks)
        self.verdicts: list[dict[str, Any]] = []  # the gate's, of every adapter so far
        self.moved = False  # the adapter, since its last publication
        self.seq = 0

    def learn(self, pixels: Sequence[Pixels], labels: Sequence[str]) -> None:
        """Learn one batch as the worker does, and publish."""
        batch = []
        for picture, label in zip(pixels, labels, strict=True):
            self.seq += 1
            batch.append(LabelledPixels(self.seq, str(self.seq), label, None, FILE, picture))
        observation = self.learner.observe(batch, self.snapshot)
        parts = evidence_parts(self.learner, observation)
        manifest = next_manifest(self.learner, self.progress, parts, cursor=self.seq)
        self._exchange(manifest, parts)
        self.moved |= bool(self.learner.tune())
        if self.learner.batch % self.adapter_every_batches == 0:
            self.publish_adapter()

    def publish_adapter(self, *, judge: bool = True) -> None:
        """Publish the adapter as it is now, as an idle worker does; `judge=False` passes no gate."""
        parts = adapter_parts(self.learner) if self.moved else {}
        self.moved = False
        if not parts:
            return
        if judge:
            self._exchange(*judged(self.learner, self.progress, parts, self.snapshot))
        else:
            manifest = next_manifest(self.learner, self.progress, parts, cursor=self.seq)
            self._exchange(manifest, parts)

    def _exchange(self, manifest: Manifest, parts: dict[str, bytes]) -> None:
        self.progress.version = manifest.version
        self.progress.parent, self.progress.digest = manifest.parent, manifest.digest
        self.progress.parts = dict(manifest.parts)
        self.progress.cursor = manifest.learned_through
        self.verdicts += [] if manifest.gate is None else [manifest.gate]
        contents = {digest_of(part): part for part in parts.values()}
        self.snapshot = build_snapshot(self.backbone, manifest, contents, self.snapshot)

    def best(self, pixels: Sequence[Pixels], names: Sequence[str], batch: int = 32) -> Tensor:
        """Return the index into `names` of the served answer for each picture."""
        vectors = [self.backbone.name_embedding(name) for name in names]
        best = []
        for start in range(0, len(pixels), batch):
            views: Views = self.snapshot.see(pixels[start : start + batch])
            text_KE = torch.stack(vectors)
            best.append(
                self.snapshot.answer(views, list(names), text_KE).probability_BK.argmax(dim=1)
            )
        return torch.cat(best)


def class_mean_accuracy(best_P: Tensor, label_P: Tensor) -> float:
    """Return the mean over classes of the share of right answers."""
    right_P = best_P == label_P
    shares = [right_P[label_P == c].float().mean() for c in sorted(set(label_P.tolist()))]
    return float(torch.stack(shares).mean())
