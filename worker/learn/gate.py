"""
The gate: an adapter is published unless held-out samples speak against it. ⑤

Each held-out picture is put to the version that serves and to the one that would; an answer counts
by the probability that it gives to the right name. Evidence has learnt the picture and leaves it
out again for the question; no adapter was trained on it. Names without a label need no such test:
how they are answered does not depend on the adapter.

Shape suffixes: N held-out pictures, C learnt classes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from everlens.model.fusion import Fusion, Scores, fuse
from everlens.model.heads import EvidenceHead

# One-sided, 5 %: a version that is just as good is held back once in twenty times, and goes out
# with the next one.
Z = 1.645

# Below this number a test says nothing; the adapter is published.
HELD_OUT_MIN = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    A paired test of two versions over the same pictures.

    Args:
        before, after: mean probability of the right name.
        error: standard error of the mean difference.
    """

    before: float
    after: float
    error: float

    @property
    def worse(self) -> bool:
        """Whether `after` is below `before` by more than chance explains."""
        # Turned round, so that an adapter whose answers are not numbers is worse, too.
        return not self.after - self.before >= -Z * self.error


@dataclass(frozen=True, slots=True)
class Verdict:
    """What held-out samples say of an adapter; without a test there were too few of them."""

    held_out: int
    test: Comparison | None = None

    @property
    def passed(self) -> bool:
        """Whether the adapter may be published."""
        return self.test is None or not self.test.worse

    def report(self) -> dict[str, Any]:
        """Return what a version's record says of it."""
        figures = {} if self.test is None else asdict(self.test)
        return {
            "published": self.passed,
            "held_out": self.held_out,
            **{field: round(value, 6) for field, value in figures.items()},
        }


def compare(before_N: Tensor, after_N: Tensor) -> Comparison:
    """Return the paired test of two versions; arguments are probabilities of the right names."""
    difference_N = (after_N - before_N).double()
    error = float(difference_N.std()) / math.sqrt(len(difference_N))
    return Comparison(float(before_N.double().mean()), float(after_N.double().mean()), error)


def without_itself(
    head: EvidenceHead, feature_ND: Tensor, sum_ND: Tensor, count_N: Tensor
) -> Tensor:
    """
    Return score_N, the evidence cosine of each picture with its own class learnt without it.

    The metric still has the picture among its samples, one of all of them.

    Args:
        head: the closed form that has learnt the pictures.
        feature_ND: their features.
        sum_ND, count_N: Σ x and n of the class of each, itself included; n > 1.
    """
    factor_DD = head.factor_DD.cpu()
    unit_ND = functional.normalize(feature_ND.cpu().double(), dim=-1)
    mean_ND = ((sum_ND - unit_ND) / (count_N - 1)[:, None]).to(factor_DD)
    whitened_ND = functional.normalize(unit_ND.to(factor_DD) @ factor_DD.T, dim=-1)
    vector_ND = functional.normalize(mean_ND @ factor_DD.T, dim=-1)
    return (whitened_ND * vector_ND).sum(dim=-1)


def left_out(scores: Scores, fusion: Fusion, class_N: Sequence[int], own_N: Tensor) -> Tensor:
    """
    Return probability_NC of all learnt classes for each picture, learnt without that picture.

    Args:
        scores: of the pictures over all learnt classes.
        fusion: of the version asked.
        class_N: the places of their classes among those.
        own_N: their evidence cosine with their own class, see `without_itself`.
    """
    assert scores.evidence_BK is not None
    row, place = torch.arange(len(class_N)), torch.tensor(list(class_N))
    evidence_NC = scores.evidence_BK.clone()
    evidence_NC[row, place] = own_N
    return fuse(scores._replace(evidence_BK=evidence_NC), fusion).probability_BK


def right_names(scores: Scores, fusion: Fusion, class_N: Sequence[int], own_N: Tensor) -> Tensor:
    """Return the probability of the right name of each picture; arguments as of `left_out`."""
    row, place = torch.arange(len(class_N)), torch.tensor(list(class_N))
    return left_out(scores, fusion, class_N, own_N)[row, place]
