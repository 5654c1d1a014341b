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
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from everlens.artifact import Manifest
from everlens.errors import PartError
from everlens.model.adapter import AdapterSpec, merged
from everlens.model.backbone import Backbone
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
from everlens.model.heads import EvidenceHead, class_vectors
from everlens.model.snapshot import CURVE_BINS, RECORD, Snapshot
from everlens.records import LABEL_CHARACTERS_MAX, clean_name

# A letter has at most four bytes; quotes, comma and blank stand around a name.
_NAMES_BYTES_MAX = CHUNK * (4 * LABEL_CHARACTERS_MAX + 4)
_SPEC_BYTES_MAX = 1024
_RANK_MAX = 4096
_COUNT_MAX = 1 << 53  # what every reader of JSON keeps exactly
_UNIT_TOLERANCE = 1e-3

# Stands for NaN in `record/N`, since a part with a number that is not finite is refused.
_UNKNOWN = -1.0

Made = TypeVar("Made")


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
    known_CR = record_CR.float().nan_to_num(nan=_UNKNOWN)
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
    chunks = -(-manifest.classes // CHUNK)
    if chunks > len(names):
        raise PartError(f"{manifest.classes} classes in {len(names)} parts")
    whole = {"fusion"}
    if chunks:
        pieces = -(-manifest.classes // EVIDENCE_CHUNK)
        whole |= {"evidence/factor"} | _numbered("classes", chunks) | _numbered("evidence", pieces)
    if "record/0" in names:
        whole |= _numbered("record", chunks)
    if "adapter" in names:
        tuned = sum(name.startswith("adapter/") for name in names) - 1
        whole |= {"adapter", "adapter/factor"} | _numbered("adapter", min(max(tuned, 1), chunks))
    if names != whole:
        raise PartError(
            f"version {manifest.version} has not the parts of one with {manifest.classes} classes: "
            f"{sorted(names ^ whole)[:3]}"
        )


def _size(prefix: str) -> int:
    """Return for how many classes a part `prefix/N` stands."""
    return EVIDENCE_CHUNK if prefix == "evidence" else CHUNK


def _numbered(prefix: str, chunks: int) -> set[str]:
    return {f"{prefix}/{number}" for number in range(chunks)}


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
        parts: digest → bytes, of at least those parts that `previous` does not have.
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
    """Puts one snapshot together; `memo` holds each piece under the digests it was made from."""

    def __init__(
        self,
        backbone: Backbone,
        manifest: Manifest,
        parts: Mapping[str, bytes],
        previous: Snapshot | None,
    ) -> None:
        self.backbone = backbone
        self.manifest = manifest
        self.parts = parts
        self.previous = previous
        self.before = previous.memo if previous is not None else {}
        self.memo: dict[Hashable, Any] = {}

    def build(self) -> Snapshot:
        for name in ("adapter", "fusion"):  # remembered also where what was made of it is
            if name in self.manifest.parts:
                self._load(name)
        evidence, adapter = self._chunks("evidence"), self._chunks("adapter")
        classes, records = self._classes(evidence), self._records()
        spec = self._once(("spec", self._digest("adapter")), self._spec)
        top_blocks = self.manifest.top_blocks
        if spec is not None and spec.top_blocks != top_blocks:
            raise PartError(f"adapter bends {spec.top_blocks} blocks of another cut")
        trunk, top = self._once(
            ("cut", top_blocks), lambda: self.backbone.answering_tower.cut(top_blocks)
        )
        tuned = None
        if spec is not None:
            tuned = self._once(("top", self._digest("adapter")), lambda: self._tuned_top(top, spec))
        return Snapshot(
            backbone=self.backbone,
            version=self.manifest.version,
            digest=self.manifest.digest,
            learned_through=self.manifest.learned_through,
            trunk=trunk,
            frozen_top=top,
            tuned_top=tuned,
            classes=classes,
            record=tuple(record_CR for record_CR, _ in records),
            curve=tuple(curve_CN2 for _, curve_CN2 in records),
            evidence=self._head("evidence", evidence),
            adapter=self._head("adapter", adapter),
            adapter_text_CE=self._adapter_text(adapter),
            fusion=self._once(("fusion", self._digest("fusion")), self._fusion),
            memo=self.memo,
        )

    def _once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        value: Made = self.before[key] if key in self.before else make()
        self.memo[key] = value
        return value

    def _digest(self, name: str) -> str | None:
        return self.manifest.parts.get(name)

    def _load(self, name: str) -> dict[str, Tensor]:
        digest = self.manifest.parts[name]

        def read() -> dict[str, Tensor]:
            if digest not in self.parts:
                raise PartError(f"part {name} ({digest[:12]}) was not fetched")
            return read_tensors(self.parts[digest], name)

        tensors = self._once(("part", digest), read)
        # Each time: the same bytes may be named as two kinds.
        check_form(tensors, name)
        return tensors

    def _chunks(self, prefix: str) -> list[dict[str, Tensor]]:
        """Return the loaded chunks `prefix/0`, `prefix/1`, …, with a row for each of their classes."""
        loaded: list[dict[str, Tensor]] = []
        for number, span in chunks_of(self.manifest.classes, _size(prefix)):
            name, most = f"{prefix}/{number}", span.stop - span.start
            digest = self._digest(name)
            if digest is None:
                break
            # Classes that came after an adapter was fitted are missing at its end.
            last = prefix == "adapter" and f"{prefix}/{number + 1}" not in self.manifest.parts
            least = 1 if last else most
            key = ("chunk", name, digest, least, most)
            loaded.append(self._once(key, partial(self._checked, name, least, most)))
            self.memo["part", digest] = loaded[-1]  # also where it was checked before
        return loaded

    def _checked(self, name: str, least: int, most: int) -> dict[str, Tensor]:
        chunk = self._load(name)
        _check_rows(chunk, name, least, most)
        return chunk

    def _classes(self, evidence: list[dict[str, Tensor]]) -> Classes:
        loaded = self._chunks("classes")
        counts = [chunk["count_C"] for chunk in evidence]
        return Classes(
            self._names(loaded),
            self._table("classes", loaded),
            torch.cat([torch.zeros(0, dtype=torch.int64), *counts]),
        )

    def _names(self, loaded: list[dict[str, Tensor]]) -> Names:
        """Return all names, those that are not where they stood before compared with the others."""
        chunks = [
            self._once(("names", self._digest(f"classes/{number}")), partial(_names, chunk, number))
            for number, chunk in enumerate(loaded)
        ]
        before = self.previous.classes.names.chunks if self.previous is not None else ()
        for number, chunk in enumerate(chunks):
            old = before[number] if number < len(before) else NameChunk(())
            if chunk is old:
                continue
            others = [other.places for other in chunks[:number] + chunks[number + 1 :]]
            for name in chunk.places.keys() - old.places.keys():
                if any(name in places for places in others):
                    raise PartError(f"the class name {name!r} stands twice in the table")
        return Names(chunks)

    def _table(self, prefix: str, loaded: list[dict[str, Tensor]]) -> Table:
        """Return the text vectors of the loaded chunks as they are scored."""
        classes, device = self.manifest.classes, self.backbone.device
        dtype = precision(classes, device)
        rows = [
            self._once(
                ("text", self._digest(f"{prefix}/{number}"), dtype),
                partial(Rows.of, chunk["text_CE"].to(device, dtype)),
            )
            for number, chunk in enumerate(loaded)
        ]
        if len({chunk.vector_CD.shape[1] for chunk in rows}) > 1:
            raise PartError(f"{prefix} has text vectors of several widths")
        return Table(tuple(rows), classes)

    def _records(self) -> list[tuple[Tensor, Tensor]]:
        """Return figures and curve of each class; a version without the part knows nothing."""
        return [
            self._once(("record", self._digest(f"record/{number}")), partial(_record, chunk))
            for number, chunk in enumerate(self._chunks("record"))
        ]

    def _head(self, prefix: str, loaded: list[dict[str, Tensor]]) -> EvidenceHead | None:
        factor_digest = self._digest(f"{prefix}/factor")
        if factor_digest is None:
            return None
        device = self.backbone.device
        loaded_DD = self._load(f"{prefix}/factor")["factor_DD"]
        if loaded_DD.shape[0] != loaded_DD.shape[1]:
            raise PartError(f"{prefix}/factor is not square: {tuple(loaded_DD.shape)}")
        factor_DD = self._once(("factor", factor_digest), lambda: loaded_DD.to(device))
        dtype = precision(self.manifest.classes, device)
        keys: list[Hashable] = []
        for number, chunk in enumerate(loaded):
            keys.append(("vectors", factor_digest, self._digest(f"{prefix}/{number}"), dtype))
            self._once(keys[-1], partial(_vectors, factor_DD, chunk["mean_CD"], dtype))
        if not keys:
            return None
        together = CHUNK // _size(prefix)
        groups = [tuple(keys[k : k + together]) for k in range(0, len(keys), together)]
        rows = [self._once(group, partial(self._together, group)) for group in groups]
        # A class that came after the adapter was fitted is unknown to it.
        return EvidenceHead(factor_DD, Table(tuple(rows), self.manifest.classes))

    def _together(self, keys: Sequence[Hashable]) -> Rows:
        """Return the vectors under these keys as one chunk, from now on the memory of them all."""
        rows = Rows.of(torch.cat([self.memo[key] for key in keys]))
        start = 0
        for key in keys:
            end = start + len(self.memo[key])
            self.memo[key] = rows.vector_CD[start:end]
            start = end
        return rows

    def _adapter_text(self, chunks: list[dict[str, Tensor]]) -> Table | None:
        """Return the tuned text vectors by class."""
        if not any("text_CE" in chunk for chunk in chunks):
            return None
        return self._table("adapter", chunks)  # a KeyError where one has none

    def _spec(self) -> AdapterSpec | None:
        if self._digest("adapter") is None:
            return None
        return _spec_in(self._load("adapter")["spec"])

    def _tuned_top(self, top: Any, spec: AdapterSpec) -> Any:
        tensors = {
            name.removeprefix("image."): tensor.to(self.backbone.device)
            for name, tensor in self._load("adapter").items()
            if name.startswith("image.")
        }
        _, exact = self.backbone.image_tower.cut(spec.top_blocks)
        return merged(exact, top, tensors, spec) if spec.tunes("image") else top

    def _fusion(self) -> Fusion:
        values = self._load("fusion")["fusion"]
        if values.shape != (len(fields(Fusion)),):
            raise PartError(f"fusion holds {tuple(values.shape)} numbers")
        fusion = Fusion(*values.tolist())
        for name, (least, most) in RANGES.items():
            if not least <= getattr(fusion, name) <= most:
                raise PartError(f"fusion has {name} {getattr(fusion, name)}, not {least} to {most}")
        return fusion


def _check_rows(chunk: Mapping[str, Tensor], name: str, least: int, most: int) -> None:
    """Return when a chunk can be that of so many classes."""
    rows = {len(tensor) for key, tensor in chunk.items() if key != "names"}
    if len(rows) != 1 or not least <= rows.pop() <= most:
        raise PartError(f"{name} has not a row for each of {most} classes")
    # A longer one would win every answer.
    if "text_CE" in chunk:
        norm_C = chunk["text_CE"].norm(dim=1)
        if not bool(((norm_C - 1).abs() < _UNIT_TOLERANCE).all()):
            raise PartError(f"{name} has a text vector whose length is not one")
    if "count_C" in chunk:
        count_C = chunk["count_C"]
        if bool(((count_C < 0) | (count_C > _COUNT_MAX)).any()):
            raise PartError("a class has a count that no number of samples gives")


def _names(chunk: Mapping[str, Tensor], number: int) -> NameChunk:
    names = read_json(chunk["names"], _NAMES_BYTES_MAX)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PartError("class table is not a list of names")
    for name in names:
        if clean_name(name, field="class name") != name:
            raise PartError(f"class name {name!r} is not in the form in which names are kept")
    if len(names) != len(chunk["text_CE"]):
        raise PartError(f"classes/{number} has {len(names)} names for other vectors")
    if len(set(names)) != len(names):
        raise PartError(f"a class name stands twice in classes/{number}")
    return NameChunk(names)


def _record(chunk: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    record_CR, curve_CN2 = chunk["record_CR"], chunk["curve_CN2"]
    if record_CR.shape[1] != len(RECORD):
        raise PartError(f"a record has {record_CR.shape[1]} columns, not {len(RECORD)}")
    if curve_CN2.shape[1:] != (CURVE_BINS, 2):
        raise PartError(f"a curve has {tuple(curve_CN2.shape[1:])} numbers a class")
    if bool((curve_CN2[:, :, 1] > curve_CN2[:, :, 0]).any()):
        raise PartError("a curve has more right answers than answers")
    return record_CR.masked_fill(record_CR == _UNKNOWN, torch.nan), curve_CN2


def _vectors(factor_DD: Tensor, mean_CD: Tensor, dtype: torch.dtype) -> Tensor:
    vector_CD = class_vectors(factor_DD, mean_CD.to(factor_DD.device))
    if not bool(vector_CD.isfinite().all()):
        raise PartError("a class overflows in the metric of the factor")
    return vector_CD.to(dtype)
