"""
A version as parts, and parts as a version: what the learner publishes, the service builds. ⑦⑧

| part               | holds                                                | changes with            |
|--------------------|------------------------------------------------------|-------------------------|
| `classes/N`        | names and text vectors of classes 1024·N …           | a new class             |
| `evidence/factor`  | the shared factor P                                  | a tenth more samples    |
| `evidence/N`       | mean feature and count of classes 1024·N …           | a sample of one of them |
| `record/N`         | how classes 1024·N … fared, see `RECORD`             | a sample of one of them |
| `adapter`          | the low-rank tensors and their spec                  | an adapter publication  |
| `adapter/factor`   | as for evidence, on tuned features                   | an adapter publication  |
| `adapter/N`        | likewise, with text vectors of a tuned text tower    | an adapter publication  |
| `fusion`           | the constants of the fusion                          | every scored sample     |

Each is a safetensors blob: nothing in it can run. Equal content gives equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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
from everlens.model.forms import check_form, read_json, read_tensors
from everlens.model.fusion import RANGES, Fusion
from everlens.model.heads import EvidenceHead, class_vectors
from everlens.model.snapshot import RECORD, Classes, Snapshot
from everlens.records import LABEL_CHARACTERS_MAX, clean_name

CHUNK = 1024

# A letter has at most four bytes; quotes, comma and blank stand around a name.
_NAMES_BYTES_MAX = CHUNK * (4 * LABEL_CHARACTERS_MAX + 4)
_SPEC_BYTES_MAX = 1024
_RANK_MAX = 4096
_COUNT_MAX = 1 << 53  # what every reader of JSON keeps exactly
_UNIT_TOLERANCE = 1e-3

# Stands for NaN in `record/N`, since a part with a number that is not finite is refused.
_UNKNOWN = -1.0

Made = TypeVar("Made")


def chunks_of(classes: int) -> Iterator[tuple[int, slice]]:
    """Yield number and class range of each chunk."""
    for number, start in enumerate(range(0, classes, CHUNK)):
        yield number, slice(start, min(start + CHUNK, classes))


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


def encode_record(record_CR: Tensor) -> bytes:
    """Return one chunk of what is said of each class, NaN where nothing is known yet."""
    return save({"record_CR": record_CR.float().nan_to_num(nan=_UNKNOWN).contiguous()})


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
        whole |= {"evidence/factor"} | _numbered("classes", chunks) | _numbered("evidence", chunks)
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
        self.before = previous.memo if previous is not None else {}
        self.memo: dict[Hashable, Any] = {}

    def build(self) -> Snapshot:
        for name in ("adapter", "fusion"):  # remembered also where what was made of it is
            if name in self.manifest.parts:
                self._load(name)
        classes = self._classes()
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
            record_CR=self._record(),
            evidence=self._head("evidence"),
            adapter=self._head("adapter"),
            adapter_text_CE=self._adapter_text(),
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
        check_form(tensors, name)  # each time: the same bytes may be named as two kinds
        return tensors

    def _chunks(self, prefix: str) -> list[dict[str, Tensor]]:
        """Return the loaded chunks `prefix/0`, `prefix/1`, …, with a row for each of their classes."""
        loaded: list[dict[str, Tensor]] = []
        for number, span in chunks_of(self.manifest.classes):
            name = f"{prefix}/{number}"
            if name not in self.manifest.parts:
                break
            chunk = self._load(name)
            rows = {len(tensor) for key, tensor in chunk.items() if key != "names"}
            # Classes that came after an adapter was fitted are missing at its end.
            last = prefix == "adapter" and f"{prefix}/{number + 1}" not in self.manifest.parts
            least = 1 if last else span.stop - span.start
            if len(rows) != 1 or not least <= rows.pop() <= span.stop - span.start:
                raise PartError(
                    f"{name} has not a row for each of {span.stop - span.start} classes"
                )
            if "text_CE" in chunk:
                self._once(
                    ("unit", self._digest(name)), partial(_check_unit, chunk["text_CE"], name)
                )
            loaded.append(chunk)
        return loaded

    def _classes(self) -> Classes:
        name_chunks, evidence_chunks = self._chunks("classes"), self._chunks("evidence")
        names: list[str] = []
        for number, chunk in enumerate(name_chunks):
            key = ("names", self._digest(f"classes/{number}"))
            listed = self._once(key, partial(_names, chunk["names"]))
            if len(listed) != len(chunk["text_CE"]):
                raise PartError(f"classes/{number} has {len(listed)} names for other vectors")
            names += listed
        if len(set(names)) != len(names):
            raise PartError("a class name stands twice in the table")
        if not names:
            return Classes((), {}, torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))
        text_CE = torch.cat([chunk["text_CE"] for chunk in name_chunks])
        count_C = torch.cat([chunk["count_C"] for chunk in evidence_chunks])
        if bool(((count_C < 0) | (count_C > _COUNT_MAX)).any()):
            raise PartError("a class has a count that no number of samples gives")
        return Classes(tuple(names), {name: k for k, name in enumerate(names)}, text_CE, count_C)

    def _record(self) -> Tensor:
        """Return what is known of each class; a version without the part knows nothing."""
        rows = [chunk["record_CR"] for chunk in self._chunks("record")]
        record_CR = torch.cat([torch.zeros(0, len(RECORD)), *rows])  # no other number of columns
        return record_CR.masked_fill(record_CR == _UNKNOWN, torch.nan)

    def _head(self, prefix: str) -> EvidenceHead | None:
        factor_digest = self._digest(f"{prefix}/factor")
        if factor_digest is None:
            return None
        device = self.backbone.device
        factor_DD = self._load(f"{prefix}/factor")["factor_DD"].to(device)
        if factor_DD.shape[0] != factor_DD.shape[1]:
            raise PartError(f"{prefix}/factor is not square: {tuple(factor_DD.shape)}")
        vectors = []
        for number, chunk in enumerate(self._chunks(prefix)):
            key = ("vectors", factor_digest, self._digest(f"{prefix}/{number}"))
            mean_CD = chunk["mean_CD"].to(device)
            vectors.append(self._once(key, partial(_finite_vectors, factor_DD, mean_CD)))
        if not vectors:
            return None
        # A class that came after the adapter was fitted is unknown to it: a zero row.
        missing = self.manifest.classes - sum(len(rows) for rows in vectors)
        vectors.append(factor_DD.new_zeros(missing, len(factor_DD)))
        return EvidenceHead(factor_DD, torch.cat(vectors))

    def _adapter_text(self) -> Tensor | None:
        """Return the tuned text vectors by class; a zero row for one that came later."""
        chunks = self._chunks("adapter")
        if not any("text_CE" in chunk for chunk in chunks):
            return None
        text_CE = torch.cat([chunk["text_CE"] for chunk in chunks])  # a KeyError where one has none
        missing = self.manifest.classes - len(text_CE)
        return torch.cat([text_CE, text_CE.new_zeros(missing, text_CE.shape[1])])

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


def _names(listed: Tensor) -> list[str]:
    names = read_json(listed, _NAMES_BYTES_MAX)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PartError("class table is not a list of names")
    for name in names:
        if clean_name(name, field="class name") != name:
            raise PartError(f"class name {name!r} is not in the form in which names are kept")
    return names


def _finite_vectors(factor_DD: Tensor, mean_CD: Tensor) -> Tensor:
    vector_CD = class_vectors(factor_DD, mean_CD)
    if not bool(vector_CD.isfinite().all()):
        raise PartError("a class overflows in the metric of the factor")
    return vector_CD


def _check_unit(text_CE: Tensor, name: str) -> None:
    """Return when every row has length one: a longer one would win every answer."""
    if not bool(((text_CE.norm(dim=1) - 1).abs() < _UNIT_TOLERANCE).all()):
        raise PartError(f"{name} has a text vector whose length is not one")
