"""
One immutable version of the classifier: everything an answer needs. ⑨

The service exchanges one reference to a snapshot between two batches; the learner scores each new
sample with the same class before it learns it. Nothing here is ever written to after it is built.

Shape suffixes: B pictures, C learnt classes, K candidates of one query, D features, E joint space.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from everlens.model.backbone import Backbone
from everlens.model.classes import CHUNK, Classes, Names, Table
from everlens.model.fusion import Fused, Fusion, Scores, fuse
from everlens.model.heads import (
    EvidenceHead,
    evidence_feature,
    evidence_scores,
    text_logits,
)
from everlens.model.runtime import fewer_threads_here, use_threads_here
from everlens.model.tower import Encoding, Hidden, Top, Trunk, pooled
from everlens.pixels import Pixels

# What a version says of each class: recall of served answers before the sample was learnt, lately;
# how far that is below its best; the weight of its loss in tuning (1 is the mean); and the recall of
# each expert alone.
RECORD = ("recall", "forgetting", "weight", "zero_shot", "evidence", "adapter")

# Of a class's curve: answers scored while it had 1 label, 2 or 3, 4 to 7, …, 512 or more.
CURVE_BINS = 10


class Views(NamedTuple):
    """What the towers say of a batch of pictures, before any name is asked for."""

    embedding_BE: Tensor  # frozen, unit norm
    feature_BD: Tensor  # frozen
    tuned_embedding_BE: Tensor | None  # through the adapter, unit norm
    tuned_feature_BD: Tensor | None  # through the adapter

    def rows(self, places: Sequence[int]) -> Views:
        """Return the views of some of the pictures."""
        return Views(*(None if view is None else view[list(places)] for view in self))  # type: ignore[arg-type]


class Ranked(NamedTuple):
    """One line of an answer; `samples` is how many labels of that class were learnt."""

    label: str
    score: float
    samples: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    A version of the classifier, ready to answer.

    `version` 0 is the frozen base: no class is learnt, only names given with a query are ranked.
    """

    backbone: Backbone
    version: int
    digest: str
    learned_through: int
    trunk: Trunk
    frozen_top: Top
    tuned_top: Top | None
    classes: Classes
    record: tuple[Tensor, ...]  # record_CR by chunk, columns `RECORD`, NaN where nothing is known
    curve: tuple[Tensor, ...]  # curve_CN2 by chunk: scored answers of each bin, and right ones
    evidence: EvidenceHead | None
    adapter: EvidenceHead | None
    adapter_text_CE: Table | None  # through a tuned text tower; none where it was not tuned
    fusion: Fusion
    # What it was made of, for the next version to use again: the digests of its parts by name, and
    # what was made of them by what it was made from.
    parts: Mapping[str, str] = field(default_factory=dict, repr=False)
    memo: Mapping[Hashable, Any] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def see(self, pixels: Sequence[Pixels], *, beside: Executor | None = None) -> Views:
        """Return the views of a batch: one trunk pass, then each top; arguments as of `look`."""
        return self.look(self.see_trunk(pixels), beside=beside)

    @torch.no_grad()
    def see_trunk(self, pixels: Sequence[Pixels]) -> Hidden:
        """Return the trunk's output for a batch, from which `look` goes on."""
        hidden: Hidden = self.trunk(self.backbone.images(pixels))
        return hidden

    @torch.no_grad()
    def look(
        self, hidden: Hidden, *, beside: Executor | None = None, known: Views | None = None
    ) -> Views:
        """
        Return the views of a batch from the trunk's output on.

        Args:
            hidden: of `see_trunk`, perhaps kept in another precision.
            beside: a thread that passes the tuned top meanwhile, each top on half of torch's
                threads; those of one top wait for each other in every layer. One picture's bits
                stay the same.
            known: what a version with the same frozen top saw in it; that top is not passed again.
        """
        hidden = Hidden(hidden.states.to(self.backbone.precision), hidden.context)
        if self.tuned_top is None or known is not None or beside is None:
            frozen = self._view(self.frozen_top, hidden) if known is None else known[:2]
            if self.tuned_top is None:
                return Views(*frozen, None, None)
            return Views(*frozen, *self._view(self.tuned_top, hidden))
        with fewer_threads_here(2) as half:
            tuned = beside.submit(self._view_on, half, self.tuned_top, hidden)
            frozen = self._view(self.frozen_top, hidden)
            return Views(*frozen, *tuned.result())

    def _view_on(self, threads: int, top: Top, hidden: Hidden) -> tuple[Tensor, Tensor]:
        use_threads_here(threads)
        return self._view(top, hidden)

    @torch.no_grad()  # which is a thread's own
    def _view(self, top: Top, hidden: Hidden) -> tuple[Tensor, Tensor]:
        encoding: Encoding = top(hidden)
        embedding_BE = functional.normalize(encoding.embedding_BE.float(), dim=-1)
        feature_BD = evidence_feature(
            encoding.feature_BD.float(), pooled(hidden), self.backbone.recipe
        )
        return embedding_BE, feature_BD

    @torch.no_grad()
    def scores(self, views: Views, names: Sequence[str] | None, text_KE: Tensor | Table) -> Scores:
        """
        Return what each expert says of each candidate.

        Args:
            views: of this snapshot's `see`.
            names: the candidates; None takes `learnt`, in that order.
            text_KE: unit vectors of the candidates' names; of None, those of all classes.
        """
        classes = None if names is None else [self.classes.names.find(name) for name in names]
        scores = Scores(
            text_BK=text_logits(views.embedding_BE, text_KE, self.backbone.logit_scale),
            evidence_BK=_scores(self.evidence, views.feature_BD, classes),
            adapter_BK=_scores(self.adapter, views.tuned_feature_BD, classes),
            tuned_text_BK=self._tuned_text(views, classes),
            count_K=self._counts(classes),
        )
        if names is not None or self.classes.labelled is None:
            return scores
        return scores.columns(self.classes.labelled)

    @torch.no_grad()
    def answer(self, views: Views, names: Sequence[str] | None, text_KE: Tensor | Table) -> Fused:
        """Return the probability of each candidate; arguments as of `scores`."""
        return fuse(self.scores(views, names, text_KE), self.fusion)

    def _tuned_text(self, views: Views, classes: list[int] | None) -> Tensor | None:
        """Return the tuned text logits; NaN for candidates that the adapter does not know."""
        if self.adapter_text_CE is None or views.tuned_embedding_BE is None:
            return None
        embedding_BE, scale = views.tuned_embedding_BE, self.backbone.logit_scale
        if classes is None:
            return text_logits(embedding_BE, self.adapter_text_CE, scale)
        text_KE = self.adapter_text_CE.at(classes)
        logit_BK = text_logits(embedding_BE, text_KE, scale)
        return logit_BK.masked_fill(~text_KE.any(dim=1), float("nan"))

    def _counts(self, classes: list[int] | None) -> Tensor:
        count_C = self.classes.count_C
        if classes is None:
            return count_C
        index_K = torch.tensor(classes, dtype=torch.int64)
        known_K = count_C[index_K.clamp(min=0)] if len(count_C) else torch.zeros_like(index_K)
        return known_K.masked_fill(index_K < 0, 0)

    @property
    def learnt(self) -> Sequence[str]:
        """The names of the classes that have a label: all, unless one's samples were forgotten."""
        return self.classes.learnt

    def about(self, index: int) -> dict[str, float | None]:
        """Return what is known of a class, by the names of `RECORD`."""
        number, place = divmod(index, CHUNK)
        if number >= len(self.record):
            return dict.fromkeys(RECORD)
        return _about(self.record[number][place].tolist())

    def rank(self, names: Sequence[str], probability_K: Tensor, top: int) -> list[Ranked]:
        """Return the `top` most probable of the named candidates, the best first."""
        scores, order = probability_K.topk(min(top, len(names)))
        return [
            Ranked(name, score, self.samples(name))
            for name, score in zip((names[i] for i in order.tolist()), scores.tolist(), strict=True)
        ]

    def samples(self, name: str) -> int:
        """Return how many labels of this class were learnt."""
        return self.classes.samples(name)


def _about(row: Sequence[float]) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else round(value, 4)
        for name, value in zip(RECORD, row, strict=True)
    }


def joined(slices: Sequence[Views]) -> Views:
    """Return the views of several batches as those of one."""
    if len(slices) == 1:
        return slices[0]
    columns: list[Any] = [
        None if part[0] is None else torch.cat(part) for part in zip(*slices, strict=True)
    ]
    return Views(*columns)


def _scores(
    head: EvidenceHead | None, feature_BD: Tensor | None, classes: list[int] | None
) -> Tensor | None:
    """Return the head's score_BK; NaN for candidates it has not learnt."""
    if head is None or feature_BD is None:
        return None
    return evidence_scores(head, feature_BD, classes)


def base_snapshot(backbone: Backbone, top_blocks: int) -> Snapshot:
    """Return version 0: the frozen base model."""
    trunk, top = backbone.answering_tower.cut(top_blocks)
    return Snapshot(
        backbone=backbone,
        version=0,
        digest="",
        learned_through=0,
        trunk=trunk,
        frozen_top=top,
        tuned_top=None,
        classes=Classes(Names(), Table((), 0), torch.zeros(0, dtype=torch.int64)),
        record=(),
        curve=(),
        evidence=None,
        adapter=None,
        adapter_text_CE=None,
        fusion=Fusion(),
        memo={("cut", top_blocks): (trunk, top)},  # so that the first version has these very towers
    )
