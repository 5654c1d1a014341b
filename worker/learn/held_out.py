"""
Asking held-out samples: how sure versions are of the names of pictures that no adapter has seen. ⑤

Shape suffixes: N held-out pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everlens.model.fusion import Fusion, Scores
from everlens.model.snapshot import Snapshot, joined
from worker.learn.gate import HELD_OUT_MIN, Verdict, compare, left_out, right_names, without_itself
from worker.learn.learner import Learner, Through
from worker.learn.replay import Exemplar

# How many are asked at most.
ASKED_MAX = 256


@torch.no_grad()
def judge(
    learner: Learner, present: Snapshot, candidate: Snapshot, through: Through = iter
) -> Verdict:
    """
    Ask whether a version with a new adapter is worse than the present one.

    Args:
        learner: whose held-out samples are asked.
        present: the version that serves.
        candidate: the same with the new adapter.
        through: yields the batches of held-out samples, as they are asked.
    """
    held = _to_ask(learner)
    if len(held) < HELD_OUT_MIN:
        return Verdict(len(held))
    asked = [_asked(learner, snapshot, held, through) for snapshot in (present, candidate)]
    before_N, after_N = (right_names(*answers) for answers in asked)
    return Verdict(len(held), compare(before_N, after_N))


@torch.no_grad()
def held_out_accuracy(
    learner: Learner, snapshots: Sequence[Snapshot], through: Through = iter
) -> tuple[int, list[float]]:
    """Return how many held-out samples there are to ask, and each version's accuracy on them."""
    held = _to_ask(learner)
    if not held:
        return 0, []
    asked = [_asked(learner, snapshot, held, through) for snapshot in snapshots]
    right = [left_out(*a).argmax(dim=1) == torch.tensor(a[2]) for a in asked]
    return len(held), [float(right_N.double().mean()) for right_N in right]


def _to_ask(learner: Learner) -> list[Exemplar]:
    """Return held-out samples to ask about: of classes that are learnt without them, too."""
    held, sums = learner.replay.held_out(ASKED_MAX), learner.sums
    return [e for e in held if sums is not None and sums.count_C[e.class_index] > 1]


def _asked(
    learner: Learner, snapshot: Snapshot, held: Sequence[Exemplar], through: Through
) -> tuple[Scores, Fusion, list[int], Tensor]:
    """Return what `left_out` needs to know of a version's answers to held-out samples."""
    assert snapshot.evidence is not None
    assert learner.sums is not None
    class_N = [exemplar.class_index for exemplar in held]
    views = joined([snapshot.look(hidden) for _, hidden in through(learner.in_parts(held))])
    own_N = without_itself(
        snapshot.evidence,
        views.feature_BD,
        learner.sums.total_CD(class_N),
        learner.sums.count_C[class_N],
    )
    place_N = [snapshot.classes.place(learner.class_names[c]) for c in class_N]
    scores = snapshot.scores(views, None, snapshot.classes.text_CE).cpu()
    return scores, snapshot.fusion, place_N, own_N
