"""A running service as tests see it, and versions made by hand for it to swap in."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from everlens.artifact import Manifest, digest_of
from everlens.bus.stream import Stream
from everlens.bus.versions import Publisher
from everlens.model.fusion import Fusion
from everlens.model.parts import (
    encode_classes,
    encode_evidence,
    encode_factor,
    encode_fusion,
    encode_record,
)
from everlens.model.snapshot import CURVE_BINS, Snapshot
from everlens.pixels import Pixels, PixelSpec
from everlens.records import DeadLetter
from service.context import Model, Service
from service.decoder.protocol import PictureLimits
from service.images import Picture
from service.resizing import SCALED_DECODE_FACTOR, to_size

LIMITS = PictureLimits(bytes_max=12 * 2**20, pixels_max=64_000_000, decoded_max=4096**2)


def encoded(picture: np.ndarray | Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    """Return the file of a picture."""
    whole = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    whole.save(buffer, form, **options)
    return buffer.getvalue()


def as_text(image: bytes) -> str:
    """Return a picture as it stands in JSON."""
    return base64.b64encode(image).decode()


@dataclass
class Api:
    """A running service, a client of it, and the learner's side of its log."""

    client: httpx.AsyncClient
    service: Service
    stream: Stream
    manifests: list[Manifest] = field(default_factory=list)

    @property
    def model(self) -> Model:
        return self.service.loaded()

    @property
    def seq(self) -> int:
        """The last number that the log has given."""
        state = self.stream.state()
        assert state is not None
        return state.seq

    async def teach(self, label: str, image: bytes, **fields: Any) -> httpx.Response:
        sample = {"image": as_text(image), "label": label, **fields}
        return await self.client.post("/samples", json=sample)

    async def ask(self, image: bytes, **fields: Any) -> httpx.Response:
        return await self.client.post("/classify", json={"image": as_text(image), **fields})

    def publish(
        self,
        pictures: Mapping[str, bytes],
        *,
        learned_through: int,
        dead: Sequence[DeadLetter] = (),
        damage: str = "",
        fingerprint: str = "",
        fusion: Fusion | None = None,
        record_CR: Tensor | None = None,
        curve_CN2: Tensor | None = None,
        gate: dict[str, Any] | None = None,
    ) -> Manifest:
        """Publish a version that has learnt one picture a class; `damage` spoils that part."""
        base = self.model.serving.base
        parts = learnt_parts(base, pictures)
        if fusion is not None:
            parts["fusion"] = encode_fusion(fusion)
        if record_CR is not None:
            if curve_CN2 is None:
                curve_CN2 = torch.zeros(len(record_CR), CURVE_BINS, 2, dtype=torch.uint8)
            parts["record/0"] = encode_record(record_CR, curve_CN2)
        parent = self.manifests[-1].digest if self.manifests else ""
        manifest = Manifest(
            version=len(self.manifests) + 1,
            parent=parent,
            fingerprint=fingerprint or base.backbone.fingerprint,
            learned_through=learned_through,
            samples=len(pictures),
            classes=len(pictures),
            top_blocks=base.backbone.top_blocks,
            parts={name: digest_of(part) for name, part in parts.items()},
            gate=gate,
        )
        publisher = Publisher(self.stream)
        publisher.store({digest_of(part): part for part in parts.values()})
        if damage:
            self.stream.client.set(self.stream.keys.part(manifest.parts[damage]), b"not a part")
        publisher.publish(manifest, dead)
        publisher.collect(manifest.version)
        self.manifests.append(manifest)
        return manifest

    async def served(self, manifest: Manifest) -> Snapshot:
        """Return the snapshot of a published version once it serves."""
        assert await self.model.serving.wait_learned(manifest.learned_through, 60)
        return self.model.serving.current


def read_picture(content: bytes, spec: PixelSpec, limits: PictureLimits = LIMITS) -> Pixels:
    """Return a picture at the model's size: what a decoder and the service do, in one process."""
    picture = Picture(content, SCALED_DECODE_FACTOR * spec.size, limits)
    room = bytearray(3 * picture.pixels)
    decoded = picture.decode(memoryview(room))
    shape = (decoded.height, decoded.width, 3)
    pixels = np.frombuffer(room, np.uint8, decoded.height * decoded.width * 3).reshape(shape)
    return to_size(pixels, decoded.orientation, spec)


def pixels_of(image: bytes, snapshot: Snapshot) -> Pixels:
    """Return a picture at the model's size."""
    return read_picture(image, snapshot.backbone.pixels)


def learnt_parts(base: Snapshot, pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the parts of a version that has learnt one picture of each class."""
    views = base.see([pixels_of(image, base) for image in pictures.values()])
    feature_CD = functional.normalize(views.feature_BD, dim=-1)
    text_CE = torch.stack([base.backbone.name_embedding(name) for name in pictures])
    return {
        "classes/0": encode_classes(list(pictures), text_CE),
        "evidence/factor": encode_factor(torch.eye(feature_CD.shape[1])),
        "evidence/0": encode_evidence(feature_CD, torch.ones(len(pictures), dtype=torch.int64)),
        "fusion": encode_fusion(Fusion()),
    }
