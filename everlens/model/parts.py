"""
A version as parts, and parts as a version: what the learner publishes, the service builds. ⑦⑧

| part               | holds                                                | changes with            |
|--------------------|------------------------------------------------------|-------------------------|
| `classes/N`        | names and text vectors of classes 1024·N …           | a new class             |
| `evidence/factor`  | the shared factor P                                  | a tenth more samples    |
| `evidence/N`       | mean feature and count of classes 64·N …             | a sample of one of them |
| `record/N`         | how classes 1024·N … fared: `RECORD`, and a curve    | a sample of one of them |
| `adapter`          | the low-rank tensors and their spec                  | an adapter publication  |
| `adapter/factor`   | as for evidence, on tuned features                   | an adapter publication  |
| `adapter/N`        | of classes 1024·N …, with texts of a tuned tower     | an adapter publication  |
| `fusion`           | the constants of the fusion                          | every scored sample     |

Each is a safetensors blob: nothing in it can run. Equal content gives equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from functools import lru_cache, partial
from itertools import count, takewhile
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from everlens.artifact import Manifest
from everlens.errors import PartError
from everlens.model.adapter import AdapterSpec, merged
from everlens.model.backbone import Backbone
from everlens.model.chunks import (
    UNKNOWN,
    Chunk,
    Metric,
    Pieces,
    build_chunk,
    chunk_key,
    chunk_of,
)
from everlens.model.classes import (
    CHUNK,
    EVIDENCE_CHUNK,
    Classes,
    NameChunk,
    Names,
    Rows,
    Table,
    chunks_of,
    precision,
)
from everlens.model.forms import check_form, read_json, read_tensors
from everlens.model.fusion import RANGES, Fusion
from everlens.model.heads import EvidenceHead
from everlens.model.snapshot import Snapshot
from everlens.model.tower import Top

_SPEC_BYTES_MAX = 1024
_RANK_MAX = 4096


def encode_classes(names: Sequence[str], text_CE: Tensor) -> bytes:
    """Return one chunk of the class table."""
    listed = np.frombuffer(json.dumps(list(names), ensure_ascii=False).encode(), np.uint8)
    return save({"names": torch.from_numpy(listed.copy()), "text_CE": text_CE.contiguous()})


def encode_evidence(mean_CD: Tensor, count_C: Tensor, text_CE: Tensor | None = None) -> bytes:
    """Return one chunk of class means and counts; of an adapter, with tuned text vectors."""
    tensors = {"count_C": count_C.contiguous(), "mean_CD": mean_CD.contiguous()}
    if text_CE is not None:
        tensors["text_CE"] = text_CE.contiguous()
    return save(tensors)


def encode_record(record_CR: Tensor, curve_CN2: Tensor) -> bytes:
    """Return one chunk of what is said of each class, NaN where nothing is known yet."""
    known_CR = record_CR.float().nan_to_num(nan=UNKNOWN)
    return save({"record_CR": known_CR.contiguous(), "curve_CN2": curve_CN2.contiguous()})


def encode_factor(factor_DD: Tensor) -> bytes:
    """Return a shared factor."""
    return save({"factor_DD": factor_DD.contiguous()})


def encode_adapter(tensors: Mapping[str, Tensor], spec: AdapterSpec) -> bytes:
    """Return the low-rank tensors by `<tower>.<map>.<A or B>`, with what they fit."""
    record = np.frombuffer(json.dumps(asdict(spec), sort_keys=True).encode(), np.uint8)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save({"spec": torch.from_numpy(record.copy()), **whole})


def decode_adapter(content: bytes) -> tuple[dict[str, Tensor], AdapterSpec]:
    """
    Return what `encode_adapter` wrote.

    Raises:
        PartError: anything else.
    """
    try:
        tensors = read_tensors(content, "adapter")
        check_form(tensors, "adapter")
        return tensors, _spec_in(tensors.pop("spec"))
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise PartError(f"an adapter cannot be read: {error}") from error


def _spec_in(text: Tensor) -> AdapterSpec:
    spec = AdapterSpec(**read_json(text, _SPEC_BYTES_MAX))
    if not (
        spec.tune in ("image", "text", "both")
        and type(spec.top_blocks) is int
        and type(spec.rank) is int
        and 1 <= spec.rank <= _RANK_MAX
        and type(spec.alpha) in (int, float)
        and 0 < spec.alpha < math.inf
    ):
        raise PartError(f"an adapter cannot be {spec}")
    return spec


def encode_fusion(fusion: Fusion) -> bytes:
    """Return the constants of the fusion."""
    return save({"fusion": torch.tensor(astuple(fusion), dtype=torch.float64)})


def check_manifest(backbone: Backbone, manifest: Manifest) -> None:
    """
    Return when this base model can build the version, going by its manifest alone.

    Raises:
        PartError: another base model, or parts that no version of so many classes has.
    """
    if manifest.fingerprint != backbone.fingerprint:
        raise PartError(
            f"version {manifest.version} belongs to base model {manifest.fingerprint[:12]}, "
            f"this service runs {backbone.name} {backbone.fingerprint[:12]}; start both halves "
            "with the same EVERLENS_MODEL"
        )
    if manifest.top_blocks > len(backbone.image_tower.blocks):
        raise PartError(f"the image tower cannot be cut at {manifest.top_blocks} blocks")
    names = manifest.parts.keys()
    if -(-manifest.classes // CHUNK) > len(names):
        raise PartError(f"{manifest.classes} classes in {len(names)} parts")
    tuned = sum(1 for _ in takewhile(names.__contains__, map("adapter/{}".format, count())))
    whole = _names_of(
        manifest.classes,
        recorded="record/0" in names,
        tuned=max(tuned, 1) if "adapter" in names else None,
    )
    if names != whole:
        raise PartError(
            f"version {manifest.version} has not the parts of one with {manifest.classes} classes: "
            f"{sorted(names ^ whole)[:3]}"
        )


@lru_cache(maxsize=2)  # nearly each version has the parts of the one before
def _names_of(classes: int, *, recorded: bool, tuned: int | None) -> frozenset[str]:
    """Return the names of all parts of a version; `tuned` of its chunks are in an adapter."""
    whole, chunks = {"fusion"}, -(-classes // CHUNK)
    if chunks:
        pieces = -(-classes // EVIDENCE_CHUNK)
        whole |= {"evidence/factor"} | _numbered("classes", chunks) | _numbered("evidence", pieces)
    if recorded:
        whole |= _numbered("record", chunks)
    if tuned is not None:
        whole |= {"adapter", "adapter/factor"} | _numbered("adapter", min(tuned, chunks))
    return frozenset(whole)


def _numbered(prefix: str, chunks: int) -> set[str]:
    return {f"{prefix}/{number}" for number in range(chunks)}


def changed_parts(manifest: Manifest, previous: Snapshot) -> list[str]:
    """Return the names of those parts that a version does not have from the one before."""
    before = previous.parts
    return [name for name, digest in manifest.parts.items() if before.get(name) != digest]


def build_snapshot(
    backbone: Backbone,
    manifest: Manifest,
    parts: Mapping[str, bytes],
    previous: Snapshot | None = None,
) -> Snapshot:
    """
    Return the version that a manifest names, verified and ready to answer.

    Args:
        backbone: the base model; nothing of it is written to.
        manifest: of the version.
        parts: digest → bytes, of at least the `changed_parts`; of all without a `previous`.
        previous: a snapshot whose unchanged pieces are used again.

    Raises:
        PartError: another base model, a part missing, damaged, or of another form.
    """
    check_manifest(backbone, manifest)
    try:
        return _Builder(backbone, manifest, parts, previous).build()
    except PartError:
        raise
    except Exception as error:  # whatever hostile bytes make the libraries raise
        raise PartError(f"version {manifest.version} has an unusable part: {error}") from error


class _Builder:
    """Puts one snapshot together, of what the version before has wherever its parts are the same."""

    def __init__(
        self,
        backbone: Backbone,
        manifest: Manifest,
        parts: Mapping[str, bytes],
        previous: Snapshot | None,
    ) -> None:
        self.backbone = backbone
        self.manifest = manifest
        self.digests = manifest.parts
        self.contents = parts
        self.previous = previous
        before = previous.memo if previous is not None else {}
        self.pieces = Pieces(self.digests, parts, before)

    def build(self) -> Snapshot:
        for name in ("adapter", "fusion"):  # remembered also where what was made of it is
            if name in self.digests:
                self.pieces.tensors(name)
        metric = self._metric()
        chunks = self._chunks(metric)
        top_blocks = self.manifest.top_blocks
        spec = self._spec()
        if spec is not None and spec.top_blocks != top_blocks:
            raise PartError(f"adapter bends {spec.top_blocks} blocks of another cut")
        trunk, top = self.pieces.once(
            ("cut", top_blocks), lambda: self.backbone.answering_tower.cut(top_blocks)
        )
        records = [chunk.record for chunk in chunks if chunk.record is not None]
        return Snapshot(
            backbone=self.backbone,
            version=self.manifest.version,
            digest=self.manifest.digest,
            learned_through=self.manifest.learned_through,
            trunk=trunk,
            frozen_top=top,
            tuned_top=None if spec is None else self._tuned_top(top, spec),
            classes=Classes(
                self._names([chunk.names for chunk in chunks]),
                self._table("classes", [chunk.text for chunk in chunks]),
                torch.cat([torch.zeros(0, dtype=torch.int64), *(c.count_C for c in chunks)]),
            ),
            record=tuple(record_CR for record_CR, _ in records),
            curve=tuple(curve_CN2 for _, curve_CN2 in records),
            evidence=self._head("evidence", metric, [chunk.evidence for chunk in chunks]),
            adapter=self._head("adapter", metric, [chunk.adapter for chunk in chunks]),
            adapter_text_CE=self._tuned_text(chunks),
            fusion=self._fusion(),
            parts=self.digests,
            memo=self.pieces.made,
        )

    def _metric(self) -> Metric:
        """Return what the vectors of all classes are made with."""
        device, factor_DD = self.backbone.device, {}
        for expert in ("evidence", "adapter"):
            name = f"{expert}/factor"
            if name in self.digests:
                loaded_DD = self.pieces.tensors(name)["factor_DD"]
                if loaded_DD.shape[0] != loaded_DD.shape[1]:
                    raise PartError(f"{name} is not square: {tuple(loaded_DD.shape)}")
                key = ("factor", self.digests[name])
                factor_DD[expert] = self.pieces.once(key, partial(loaded_DD.to, device))
        digests = {expert: self.digests[f"{expert}/factor"] for expert in factor_DD}
        return Metric(factor_DD, digests, precision(self.manifest.classes, device), device)

    def _chunks(self, metric: Metric) -> list[Chunk]:
        """Return the chunks of all classes; those that the version before has as they are."""
        before: Mapping[Hashable, Any] = {}
        touched: set[int | None] = set()
        if self.previous is not None:
            before = self.previous.memo
            touched = {chunk_of(name) for name in changed_parts(self.manifest, self.previous)}
        chunks = []
        for number, span in chunks_of(self.manifest.classes):
            classes, place = span.stop - span.start, ("chunk", number)
            chunk: Chunk | None = before.get(place)
            made_of = chunk_key(self.digests, number, classes, metric)
            if chunk is None or number in touched or chunk.key != made_of:
                own = Pieces(self.digests, self.contents, chunk.pieces if chunk is not None else {})
                chunk = build_chunk(own, number, classes, metric)
            self.pieces.made[place] = chunk
            chunks.append(chunk)
        return chunks

    def _names(self, chunks: list[NameChunk]) -> Names:
        """Return all names, those that are not where they stood before compared with the others."""
        before = self.previous.classes.names.chunks if self.previous is not None else ()
        for number, chunk in enumerate(chunks):
            old = before[number] if number < len(before) else NameChunk(())
            if chunk is old:
                continue
            new = chunk.places.keys() - old.places.keys()
            for other in chunks[:number] + chunks[number + 1 :]:
                twice = next(filter(other.places.__contains__, new), None)
                if twice is not None:
                    raise PartError(f"the class name {twice!r} stands twice in the table")
        return Names(chunks)

    def _table(self, prefix: str, chunks: Sequence[Rows]) -> Table:
        """Return the text vectors of the chunks as one table."""
        if len({rows.vector_CD.shape[1] for rows in chunks}) > 1:
            raise PartError(f"{prefix} has text vectors of several widths")
        return Table(tuple(chunks), self.manifest.classes)

    def _head(
        self, expert: str, metric: Metric, chunks: Sequence[Rows | None]
    ) -> EvidenceHead | None:
        # A class that came after the adapter was fitted is unknown to it.
        known = tuple(rows for rows in chunks if rows is not None)
        if not known:
            return None
        return EvidenceHead(metric.factor_DD[expert], Table(known, self.manifest.classes))

    def _tuned_text(self, chunks: Sequence[Chunk]) -> Table | None:
        """Return the tuned text vectors by class."""
        tuned = [chunk.tuned_text for chunk in chunks if chunk.adapter is not None]
        known = [rows for rows in tuned if rows is not None]
        if not known:
            return None
        if len(known) < len(tuned):
            raise PartError("an adapter has tuned text vectors of some classes alone")
        return self._table("adapter", known)

    def _spec(self) -> AdapterSpec | None:
        if "adapter" not in self.digests:
            return None
        tensors = self.pieces.tensors("adapter")
        return self.pieces.once(
            ("spec", self.digests["adapter"]), lambda: _spec_in(tensors["spec"])
        )

    def _tuned_top(self, top: Top, spec: AdapterSpec) -> Top:
        if not spec.tunes("image"):
            return top
        return self.pieces.once(
            ("top", self.digests["adapter"]), lambda: self._merged_top(top, spec)
        )

    def _merged_top(self, top: Top, spec: AdapterSpec) -> Top:
        tensors = {
            name.removeprefix("image."): tensor.to(self.backbone.device)
            for name, tensor in self.pieces.tensors("adapter").items()
            if name.startswith("image.")
        }
        _, exact = self.backbone.image_tower.cut(spec.top_blocks)
        return merged(exact, top, tensors, spec)

    def _fusion(self) -> Fusion:
        values = self.pieces.tensors("fusion")["fusion"]
        return self.pieces.once(("made", self.digests["fusion"]), partial(_fusion_of, values))


def _fusion_of(values: Tensor) -> Fusion:
    if values.shape != (len(fields(Fusion)),):
        raise PartError(f"fusion holds {tuple(values.shape)} numbers")
    fusion = Fusion(*values.tolist())
    for name, (least, most) in RANGES.items():
        if not least <= getattr(fusion, name) <= most:
            raise PartError(f"fusion has {name} {getattr(fusion, name)}, not {least} to {most}")
    return fusion
