"""
The adapter's own closed form: on features as they are tuned now, so from the buffer alone. ⑤

Shape suffixes: C classes, D features, E joint space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everlens.model.heads import evidence_feature
from everlens.model.tower import pooled
from worker.learn.evidence import EvidenceSums, Head, head_of
from worker.learn.learner import Learner, Through
from worker.learn.replay import Exemplar

# How many exemplars it is fitted on at most, a forward pass each.
EXEMPLARS_MAX = 2048


def exemplars_seen(learner: Learner) -> int:
    """Return how many exemplars `fit_adapter_head` would see."""
    return min(len(learner.replay), EXEMPLARS_MAX)


@torch.no_grad()
def fit_adapter_head(learner: Learner, through: Through = iter) -> Head | None:
    """
    Return the closed form; None without exemplars, or after an adapter that had to go back.

    Args:
        learner: whose exemplars it is fitted on.
        through: yields their batches, as they are looked at.
    """
    exemplars = balanced(learner, EXEMPLARS_MAX)
    if not exemplars:
        return None
    tuned_top = learner.tuner.merged_image_top()
    sums: EvidenceSums | None = None
    for part, hidden in through(learner.in_parts(exemplars)):
        feature_BD = evidence_feature(
            tuned_top(hidden).feature_BD.float(), pooled(hidden), learner.backbone.recipe
        ).cpu()
        if not bool(feature_BD.isfinite().all()):
            learner.tuner.roll_back()  # an adapter that answers with no numbers is none
            return None
        sums = sums or EvidenceSums(feature_BD.shape[1])
        sums.add(feature_BD, [e.class_index for e in part])
    assert sums is not None
    sums.make_room(len(learner.class_names))
    return head_of(sums)


def adapter_text(learner: Learner, span: slice, through: Through = iter) -> Tensor | None:
    """Return text_CE, tuned, of a range of classes; None if that tower is frozen. `through` as above."""
    if not learner.config.adapter.tunes("text"):
        return None
    template = learner.backbone.templates[0]
    names = through(learner.class_names[span])
    return torch.stack([learner.tuner.text_vector(template.format(name)) for name in names])


def balanced(learner: Learner, count_max: int) -> list[Exemplar]:
    """
    Return the buffer, or an equal share of each class when it is larger than that.

    With more classes than `count_max` they take turns; the others answer by evidence alone.
    """
    classes = learner.replay.classes
    if len(classes) > count_max:
        start = learner.batch * count_max % len(classes)
        classes = sorted((classes[start:] + classes[:start])[:count_max])
    share = max(1, count_max // max(1, len(classes)))
    return [e for c in classes for e in learner.replay.of_class(c)[-share:]]
