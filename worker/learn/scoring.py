"""
Scored before learnt: a batch is put to the version that serves, and what that shows is kept. ⑤

Shape suffixes: B samples, C classes, X experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from everlens.model.fusion import Fusion, Scores, fuse
from everlens.model.snapshot import Snapshot, Views
from worker.learn.fusing import FusionLearner
from worker.learn.prequential import ClassRecords, Prequential


class Scoring:
    """What scored samples show: of all answers, of those of each class, and of what experts are worth."""

    def __init__(self, begin: Fusion) -> None:
        self.prequential = Prequential()
        self.records = ClassRecords()
        self.fusing = FusionLearner(begin)

    def score(
        self,
        labels: Sequence[str],
        snapshot: Snapshot,
        views: Views,
        class_index: Mapping[str, int],
    ) -> list[int]:
        """
        Score the samples of classes that the snapshot knows; return those classes.

        Args:
            labels: of the samples.
            snapshot: the version that serves.
            views: what it sees in their pictures.
            class_index: of every name.
        """
        if not snapshot.learnt:
            return []
        scores, place_B, best_B = _answers(labels, snapshot, views)
        self.fusing.record(scores, place_B)
        expert_BX = _votes(scores)
        known = [row for row, place in enumerate(place_B) if place >= 0]
        for row in known:
            place, right = place_B[row], best_B[row] == place_B[row]
            self.prequential.record(right=right)
            self.records.record(
                class_index[labels[row]],
                right=right,
                experts=[vote == place for vote in expert_BX[row]],
                labels=int(scores.count_K[place]),
            )
        return sorted({class_index[labels[row]] for row in known})

    def score_refused(self, names: Sequence[str], snapshot: Snapshot, views: Views) -> None:
        """
        Score pictures of which it is said what they are not.

        An answer that named it first was wrong; of any other one nothing is known. The fusion
        hears none of it: somebody refuses where the answer was wrong alone, and it would come to
        be unsure of everything.
        """
        if not snapshot.learnt:
            return
        _, place_B, best_B = _answers(names, snapshot, views)
        for place, best in zip(place_B, best_B, strict=True):
            if place == best:
                self.prequential.record(right=False)

    def about(self, span: slice, weight_C: Tensor) -> Tensor:
        """
        Return what is said of a range of classes: the columns of `snapshot.RECORD`.

        Args:
            span: the range.
            weight_C: of the loss of every class.
        """
        records = self.records.part(span)
        columns = [records.recall_C, records.forgetting_C, weight_C[span]]
        return torch.cat([torch.stack(columns, dim=1), records.expert_CX], dim=1)


def _answers(
    labels: Sequence[str], snapshot: Snapshot, views: Views
) -> tuple[Scores, list[int], list[int]]:
    """Return the scores of all learnt names, and the places of the given and of the best of them."""
    scores = snapshot.scores(views, None, snapshot.classes.text_CE).cpu()
    place_B = [snapshot.classes.place(label) for label in labels]
    best_B: list[int] = fuse(scores, snapshot.fusion).probability_BK.argmax(dim=1).tolist()
    return scores, place_B, best_B


def _votes(scores: Scores) -> list[list[int]]:
    """Return the class that each expert of `EXPERTS` would name, for each picture."""
    evidence_BK = scores.evidence_BK
    assert evidence_BK is not None
    adapter_BK = evidence_BK if scores.adapter_BK is None else scores.adapter_BK
    adapter_BK = torch.where(adapter_BK.isnan(), evidence_BK, adapter_BK)
    votes_BX = [s.argmax(dim=1) for s in (scores.text_BK, evidence_BK, adapter_BK)]
    return torch.stack(votes_BX, dim=1).tolist()
