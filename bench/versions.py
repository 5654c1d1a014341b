"""
Versions without a learner: any number of classes under made-up names, with or without an adapter.

Every part is one that the learner could have published, so the service builds and serves them as it
does any other; only what they know is random. The text tower is not asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from everlens.artifact import Manifest, digest_of
from everlens.bus.connect import connect
from everlens.bus.keys import Keys
from everlens.bus.stream import Stream
from everlens.bus.versions import Publisher
from everlens.model.adapter import AdapterSpec, insert, tensors_of
from everlens.model.backbone import Backbone
from everlens.model.classes import EVIDENCE_CHUNK, chunks_of
from everlens.model.parts import (
    build_snapshot,
    encode_adapter,
    encode_classes,
    encode_evidence,
    encode_factor,
    encode_fusion,
    encode_record,
)
from everlens.model.snapshot import CURVE_BINS, RECORD, Snapshot, base_snapshot
from everlens.model.tower import Top
from everlens.pixels import Pixels

RANK = 8  # as the settings have it
_NUDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Version:
    """A manifest, and those of its parts that the version before does not have, by digest."""

    manifest: Manifest
    contents: dict[str, bytes]


class Versions:
    """
    One version after the other over a fixed table of classes.

    Args:
        backbone: the base model.
        classes: how many are learnt.
        top_blocks: k; the cut of the tower, and how many blocks an adapter bends.
        adapter: whether the versions have one.

    Attributes:
        names, text_CE, mean_CD, count_C, tuned_CD: the classes, their text vectors, mean features,
            labels, and means of tuned features (None without an adapter).
    """

    def __init__(
        self, backbone: Backbone, classes: int, *, top_blocks: int, adapter: bool = True
    ) -> None:
        self.backbone = backbone
        self.names = [f"class {k}" for k in range(classes)]
        self.spec = AdapterSpec("image", top_blocks, RANK, float(RANK)) if adapter else None
        self._random = torch.Generator().manual_seed(classes)
        base = base_snapshot(backbone, top_blocks)
        views = base.see([_grey(backbone)])
        _, exact = backbone.image_tower.cut(top_blocks)
        self._low_rank = _fresh_adapter(exact, self.spec, self._random)
        self.text_CE = self._units(classes, views.embedding_BE.shape[1])
        self.mean_CD = self._units(classes, views.feature_BD.shape[1])
        self.tuned_CD = self._units(classes, views.feature_BD.shape[1]) if adapter else None
        self.count_C = torch.ones(classes, dtype=torch.int64)
        self._manifest = Manifest(
            version=0,
            parent="",
            fingerprint=backbone.fingerprint,
            learned_through=0,
            samples=classes,
            classes=classes,
            top_blocks=top_blocks,
            parts={},
        )

    def first(self) -> Version:
        """Return the version that has every part anew."""
        parts = {"evidence/factor": encode_factor(torch.eye(self.mean_CD.shape[1]))}
        parts |= self._evidence(range(len(self.names)))
        if self.tuned_CD is not None:
            parts["adapter/factor"] = encode_factor(torch.eye(self.tuned_CD.shape[1]))
            for number, span in chunks_of(len(self.names)):
                parts[f"adapter/{number}"] = encode_evidence(
                    self.tuned_CD[span], self.count_C[span]
                )
            parts |= self._adapter()
        return self._next(parts)

    def learnt(self, changed: int) -> Version:
        """Return the next version, in which one class has a label more."""
        self.count_C[changed] += 1
        self.mean_CD[changed] = self._units(1, self.mean_CD.shape[1])[0]
        return self._next(self._evidence([changed]))

    def tuned(self) -> Version:
        """Return the next version, with another adapter."""
        return self._next(self._adapter())

    def _next(self, parts: dict[str, bytes]) -> Version:
        number = self._manifest.version + 1
        # What a version always brings: the fusion moves with every sample that is scored.
        fusion = replace(self.backbone.fusion(), kappa=1 + (number % 1000) / 1000)
        parts = {**parts, "fusion": encode_fusion(fusion)}
        contents = {digest_of(part): part for part in parts.values()}
        self._manifest = replace(
            self._manifest,
            version=number,
            parent=self._manifest.digest if self._manifest.version else "",
            parts={
                **self._manifest.parts,
                **{name: digest_of(part) for name, part in parts.items()},
            },
        )
        return Version(self._manifest, contents)

    def _evidence(self, changed: Iterable[int]) -> dict[str, bytes]:
        """Return the parts that a sample of each of these classes changes."""
        parts = {}
        touched = set(changed)
        for number, span in chunks_of(len(self.names)):
            if touched.isdisjoint(range(span.start, span.stop)):
                continue
            count_C = self.count_C[span]
            record_CR = torch.zeros(len(count_C), len(RECORD)) + (count_C % 7)[:, None] / 8
            curve_CN2 = torch.ones(len(count_C), CURVE_BINS, 2, dtype=torch.uint8)
            if not self._manifest.parts:  # the name of a class is for ever
                parts[f"classes/{number}"] = encode_classes(self.names[span], self.text_CE[span])
            parts[f"record/{number}"] = encode_record(record_CR, curve_CN2)
        for number, span in chunks_of(len(self.names), EVIDENCE_CHUNK):
            if not touched.isdisjoint(range(span.start, span.stop)):
                parts[f"evidence/{number}"] = encode_evidence(
                    self.mean_CD[span], self.count_C[span]
                )
        return parts

    def _adapter(self) -> dict[str, bytes]:
        assert self.spec is not None
        nudged = {
            name: tensor + _NUDGE * torch.randn(tensor.shape, generator=self._random)
            for name, tensor in self._low_rank.items()
        }
        return {"adapter": encode_adapter(nudged, self.spec)}

    def _units(self, rows: int, width: int) -> Tensor:
        return functional.normalize(torch.randn(rows, width, generator=self._random), dim=1)


class Head:
    """The head of a log that has no learner: this process holds its lease and publishes."""

    def __init__(self, url: str, namespace: str) -> None:
        self.client = connect(url)
        self.stream = Stream(self.client, Keys(namespace))
        self.epoch = self.stream.create()
        self.publisher = Publisher(self.stream)

    def publish(self, version: Version) -> None:
        """Store what is new of a version and make it the head, as the learner does."""
        self.stream.hold(self.epoch, "bench")
        missing = self.publisher.missing(sorted(version.contents))
        self.publisher.store({digest: version.contents[digest] for digest in missing})
        self.publisher.publish(version.manifest, [])
        self.publisher.collect(version.manifest.version)

    @property
    def seq(self) -> int:
        """The last number that the log has given."""
        state = self.stream.state()
        assert state is not None
        return state.seq

    def forget_samples(self, id_window: int) -> None:
        """Free what waits in the log, as if it were learnt."""
        self.stream.hold(self.epoch, "bench")
        seq = self.seq
        self.stream.trim(seq, seq, id_window)

    def close(self) -> None:
        """Leave the server; the lease lapses."""
        self.client.close()


def served(backbone: Backbone, version: Version, previous: Snapshot | None = None) -> Snapshot:
    """Return the snapshot that a service would answer with."""
    return build_snapshot(backbone, version.manifest, version.contents, previous)


def _fresh_adapter(
    top: Top, spec: AdapterSpec | None, random: torch.Generator
) -> dict[str, Tensor]:
    """Return an adapter's tensors as it begins; none without a spec."""
    if spec is None:
        return {}
    tensors = tensors_of(insert(top, spec, random))
    return {f"image.{name}": tensor.detach().cpu() for name, tensor in tensors.items()}


def _grey(backbone: Backbone) -> Pixels:
    size = backbone.pixels.size
    pixels: Pixels = torch.full((size, size, 3), 128, dtype=torch.uint8).numpy()
    return pixels
