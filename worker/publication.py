"""State → parts and manifest of the next version. ⑦"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from everlens.artifact import Manifest, digest_of
from everlens.errors import PartError
from everlens.model.classes import CHUNK, EVIDENCE_CHUNK, chunks_of
from everlens.model.parts import (
    build_snapshot,
    decode_adapter,
    encode_adapter,
    encode_classes,
    encode_evidence,
    encode_factor,
    encode_fusion,
    encode_record,
)
from everlens.model.snapshot import Snapshot
from everlens.records import Activation
from worker.commit import Progress
from worker.learn.adapter_head import adapter_text, fit_adapter_head
from worker.learn.held_out import judge
from worker.learn.learner import Forgotten, Learner, Observation, Through


def evidence_parts(learner: Learner, change: Observation | Forgotten | None) -> dict[str, bytes]:
    """
    Return the parts of the evidence that a change touched, by name; None makes every part.

    The name of a class is for ever: `classes/N` changes with a new one alone.
    """
    parts = {"fusion": encode_fusion(learner.scoring.fusing.fusion())}
    if learner.sums is None or learner.factor is None:
        return parts
    if change is None or change.refreshed:
        parts["evidence/factor"] = encode_factor(learner.factor)
    classes, weight_C = len(learner.class_names), learner.class_weights()
    touched = range(classes) if change is None else change.touched
    first_new = 0 if change is None else classes - len(change.new_classes)
    for number, span in _chunks_with(touched, classes, EVIDENCE_CHUNK):
        parts[f"evidence/{number}"] = encode_evidence(
            learner.sums.mean_CD(span), learner.sums.count_C[span]
        )
    for number, span in _chunks_with(touched, classes, CHUNK):
        parts[f"record/{number}"] = encode_record(
            learner.scoring.about(span, weight_C), learner.scoring.records.part(span).curve_CN2
        )
        if span.stop > first_new:
            parts[f"classes/{number}"] = encode_classes(
                learner.class_names[span], torch.stack(learner.text_vectors[span])
            )
    return parts


def _chunks_with(indices: Iterable[int], classes: int, size: int) -> list[tuple[int, slice]]:
    """Return number and class range of the chunks that these classes are in."""
    numbers = sorted({index // size for index in indices})
    return [(n, slice(n * size, min((n + 1) * size, classes))) for n in numbers]


def adapter_parts(learner: Learner, through: Through = iter) -> dict[str, bytes]:
    """
    Return the parts of the adapter as it is now, with its own closed form; empty if none.

    Args:
        learner: whose it is.
        through: yields what is given, as it is worked through; that may take minutes.
    """
    head = fit_adapter_head(learner, through)
    if head is None:
        return {}
    parts = {
        "adapter": encode_adapter(learner.tuner.adapter(), learner.config.adapter),
        "adapter/factor": encode_factor(head.factor_DD),
    }
    for number, span in chunks_of(len(head.count_C)):
        parts[f"adapter/{number}"] = encode_evidence(
            head.mean_CD[span], head.count_C[span], adapter_text(learner, span, through)
        )
    return parts


def is_adapters(name: str) -> bool:
    """Return whether a part is the adapter's."""
    return name == "adapter" or name.startswith("adapter/")


def is_made_once(name: str) -> bool:
    """Return whether a start cannot make a part again, since the weights in it moved on."""
    return is_adapters(name) or name.startswith("record/")


def adapter_parts_without(saved: Mapping[str, bytes], classes: Iterable[int]) -> dict[str, bytes]:
    """
    Return the parts of an adapter's closed form that know some of these classes, without them.

    Its means are of exemplars, and what is unlearnt may be one of them. Evidence alone answers for
    those classes until the adapter is published next.

    Args:
        saved: the parts as they are published.
        classes: the classes.
    """
    parts = {}
    for number, span in _chunks_with(classes, sys.maxsize, CHUNK):
        name = f"adapter/{number}"
        if name in saved:
            tensors = load(saved[name])
            known = [c - span.start for c in classes if span.start <= c < span.stop]
            known = [place for place in known if place < len(tensors["count_C"])]
            tensors["mean_CD"][known] = 0
            tensors["count_C"][known] = 0
            parts[name] = encode_evidence(
                tensors["mean_CD"], tensors["count_C"], tensors.get("text_CE")
            )
    return parts


def go_back(learner: Learner, activation: Activation) -> None:
    """
    Let the learner go on with the adapter of an earlier version.

    Raises:
        PartError, ValueError: its adapter is not one of this learner's; nothing was changed.
    """
    tensors: dict[str, Tensor] = {}
    if activation.adapter:
        tensors, spec = decode_adapter(activation.adapter)
        if spec != learner.config.adapter:
            raise PartError("its adapter was made with other settings")
    learner.go_back(tensors)


def judged(
    learner: Learner,
    progress: Progress,
    parts: dict[str, bytes],
    present: Snapshot,
    through: Through = iter,
) -> tuple[Manifest, dict[str, bytes]]:
    """
    Put a new adapter before the gate; return the next version with its parts.

    Where it is held back the version has no new part, says why, and the tuner is back at the
    adapter that was published last. `through` is as of `adapter_parts`.
    """
    cursor = progress.cursor
    contents = {digest_of(part): part for part in parts.values()}
    manifest = next_manifest(learner, progress, parts, cursor=cursor)
    candidate = build_snapshot(learner.backbone, manifest, contents, present)
    verdict = judge(learner, present, candidate, through)
    if verdict.passed:
        learner.tuner.accept()
        return replace(manifest, gate=verdict.report()), parts
    learner.tuner.roll_back()
    return next_manifest(learner, progress, {}, cursor=cursor, gate=verdict.report()), {}


def next_manifest(
    learner: Learner,
    progress: Progress,
    parts: dict[str, bytes],
    *,
    cursor: int,
    gate: dict[str, Any] | None = None,
    restored_from: int | None = None,
) -> Manifest:
    """Return the manifest of the version after `progress`, with these parts exchanged."""
    return Manifest(
        version=progress.version + 1,
        parent=progress.digest,
        fingerprint=progress.fingerprint,
        learned_through=cursor,
        samples=learner.samples,
        classes=len(learner.class_names),
        top_blocks=learner.config.adapter.top_blocks,
        parts={**progress.parts, **{name: digest_of(part) for name, part in parts.items()}},
        gate=gate,
        restored_from=restored_from,
    )
