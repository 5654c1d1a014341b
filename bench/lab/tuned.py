"""
What tuning alone can do, for comparison: other candidates, other rules, and all the data at once.

Each is the product's own tuner with one thing changed. None is in the product.

Shape suffixes: B pictures of a batch, P test pictures, C classes, E joint space, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.lab.run import Run
from everlens.model.fusion import Scores
from everlens.model.snapshot import Snapshot, Views
from worker.learn.learner import Learner
from worker.learn.replay import Exemplar
from worker.learn.tuning import Draw, Round, Tuner

# Prequential accuracies of AnytimeCL: plain means at first, then an exponential average.
_DECAY = 0.99


class AsymmetricTuner(Tuner):
    """
    Every class that is known competes, present in the batch or not: ordinary fine-tuning.

    With replay and uniform weights this is experience replay. Image tower only.
    """

    known_CE: Callable[[], Tensor]

    def candidates(
        self,
        company: Sequence[Exemplar],
        text_vector: Callable[[Exemplar], Tensor],
        prompt: Callable[[Exemplar], str],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the texts of all known classes."""
        text_KE = self.known_CE()
        target_B = torch.tensor([e.class_index for e in company])
        return text_KE, target_B, torch.ones(len(company), len(text_KE), dtype=torch.bool)


def make_asymmetric(learner: Learner) -> None:
    """Exchange the tuner of a new learner for one whose candidates are all known classes."""
    config = learner.config
    tuner = AsymmetricTuner(learner.backbone, config.adapter, config.tuning)
    tuner.known_CE = lambda: torch.stack(learner.text_vectors)
    learner.tuner = tuner


class AnytimeRule:
    """
    The mixture of AnytimeCL (arXiv 2409.08518): tuned and frozen text classifiers, by class.

        α_c = a_t(c) / (a_t(c) + a_o(c) + ε),   p(c) = α_c p_t(c) + (1 - α_c) p_o(c)

    with a_t and a_o the accuracies of either on new samples of the class before they were learnt.
    """

    def __init__(self) -> None:
        self.correct: dict[str, Tensor] = {}
        self.seen: dict[str, int] = {}

    def before_batch(self, snapshot: Snapshot, views: Views, labels: list[str]) -> None:
        """Score a batch by both classifiers."""
        if views.tuned_embedding_BE is None:
            return
        classes = snapshot.classes
        votes_2B = [
            classes.text_CE.products(embedding_BE).argmax(dim=1).tolist()
            for embedding_BE in (views.tuned_embedding_BE, views.embedding_BE)
        ]
        for row, label in enumerate(labels):
            if classes.names.find(label) < 0:
                continue
            right = torch.tensor(
                [float(votes[row] == classes.names.find(label)) for votes in votes_2B]
            )
            seen = self.seen[label] = self.seen.get(label, 0) + 1
            share = max(1 / seen, 1 - _DECAY)
            before = self.correct.get(label, torch.zeros(2))
            self.correct[label] = before + share * (right - before)

    def voice(self, run: Run, views: Views, scores: Scores) -> dict[str, Tensor]:
        """Return the mixture's answer to test pictures."""
        if views.tuned_embedding_BE is None:
            return {}
        classes = run.replica.snapshot.classes
        scale = run.replica.backbone.logit_scale
        tuned_PC = classes.text_CE.products(scale * views.tuned_embedding_BE).softmax(dim=1)
        rates_C2 = torch.stack([self.correct.get(name, torch.zeros(2)) for name in classes.names])
        alpha_C = rates_C2[:, 0] / (rates_C2.sum(dim=1) + 1e-8)
        frozen_PC = scores.text_BK.softmax(dim=1)
        return {"AnytimeCL": alpha_C * tuned_PC + (1 - alpha_C) * frozen_PC}


def train_jointly(learner: Learner, epochs: int, seed: int) -> None:
    """
    Tune from the start on all exemplars at once, epoch by epoch in random order.

    An upper bound for what tuning on a stream can reach: nothing is forgotten, everything is seen
    again and again.
    """
    config = learner.config
    make_asymmetric(learner)
    exemplars = [e for c in learner.replay.classes for e in learner.replay.of_class(c)]
    generator = torch.Generator().manual_seed(seed)
    size = 2 * config.tuning.replay_samples
    for epoch in range(epochs):
        order = torch.randperm(len(exemplars), generator=generator).tolist()
        companies = [order[start : start + size] for start in range(0, len(order), size)]
        draws = [Draw(k, [exemplars[n] for n in c], []) for k, c in enumerate(companies)]
        learner.take(Round(epoch, len(learner.class_names), draws))
