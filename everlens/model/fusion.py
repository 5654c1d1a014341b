"""
Three experts, one answer: a counted weight among learnt classes, and a gate to unseen names. ⑨

Shape suffixes: B pictures, K candidates, X experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# How much of the text's logits a tuned tower has, where it knows the class.
_TUNED_TEXT = 0.5


class Scores(NamedTuple):
    """
    What each expert says of each candidate, and how many labels that has.

    Args:
        text_BK: zero-shot logits.
        evidence_BK, adapter_BK: cosines, NaN for a candidate that the head does not know; None
            where there is no such head.
        tuned_text_BK: logits through a tuned text tower, NaN likewise; None if it is frozen.
        count_K: labels learnt of each candidate; 0 makes it a member of U.
    """

    text_BK: Tensor
    evidence_BK: Tensor | None
    adapter_BK: Tensor | None
    tuned_text_BK: Tensor | None
    count_K: Tensor

    def cpu(self) -> Scores:
        """Return the scores on the CPU, where learning adds up."""
        return Scores(*(None if part is None else part.cpu() for part in self))  # type: ignore[arg-type]

    def columns(self, index_K: Tensor) -> Scores:
        """Return the scores of some of the candidates."""

        def of(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[..., index_K.to(part.device)]

        return Scores(*map(of, self))  # type: ignore[arg-type]

    def picture(self, row: int) -> Scores:
        """Return the scores of one picture of the batch."""

        def of(score_BK: Tensor | None) -> Tensor | None:
            return None if score_BK is None else score_BK[row : row + 1]

        return Scores(
            self.text_BK[row : row + 1],
            of(self.evidence_BK),
            of(self.adapter_BK),
            of(self.tuned_text_BK),
            self.count_K,
        )


class Fused(NamedTuple):
    """The answer: `known_B` is the probability that a picture is of any learnt class."""

    probability_BK: Tensor
    known_B: Tensor


@dataclass(frozen=True, slots=True)
class Fusion:
    """
    The few numbers of the fusion; a part of each version, learnt by `worker.learn.fusing`.

    Args:
        kappa: κ, labels after which evidence weighs as much as the text.
        text_power: b, how much the text has a say in every answer; the better zero-shot is, the
            more.
        sharpness: τ, above one where a mixture of experts is less sure than it is right.
        scale: multiplier of evidence cosines before their softmax.
        adapter: weight of the adapter's cosine beside the evidence's, in [0, 1].
        threshold: evidence cosine at which a picture is as likely of a learnt class as not.
        slope: nats that a cosine above it adds to that.
        text_center: zero-shot logit, of the best learnt name, at which the same holds.
        text_slope: nats a nat above it adds; 0 while the centre is not known.
    """

    kappa: float = 1.0
    text_power: float = 0.0
    sharpness: float = 1.5
    scale: float = 28.0
    adapter: float = 0.4
    threshold: float = 0.20
    slope: float = 28.0
    text_center: float = 0.0
    text_slope: float = 0.0


# What each constant may be, ends included. Wider than anything that is learnt; beyond it an answer
# would be turned upside down, or be no number.
RANGES = {
    "kappa": (0.0, 1e3),
    "text_power": (0.0, 1e2),
    "sharpness": (0.0, 1e2),
    "scale": (0.0, 1e3),
    "adapter": (0.0, 1.0),
    "threshold": (-1.0, 1.0),
    "slope": (0.0, 1e3),
    "text_center": (-1e4, 1e4),
    "text_slope": (0.0, 1e2),
}


def fuse(scores: Scores, fusion: Fusion) -> Fused:
    """
    Return probability_BK over the candidates, each row summing to one, and known_B.

    Among learnt candidates S the experts are mixed by counted weight w_c = n_c / (n_c + κ):

        p_S(c) ∝ [ ((1 - w_c) · p0(c) + w_c · p1(c)) · p0(c)^b ]^τ
        p0 = softmax_S(text),  p1 = softmax_S(scale · e)

    where e_c is the evidence cosine, with the adapter's mixed in where that knows the class, and
    the text likewise has a tuned text tower's logits mixed in. How much goes to S at all, against
    names U without a label, is decided by the frozen model's own mass M on S and by how near the
    nearest learnt class is:

        logit P(S) = logit M + slope · (max_S e_c - threshold)

    with e_c of the frozen evidence alone. So no adapter changes what a name in U gets, and within U
    the order and the ratios are those of the frozen model. Where no name in U is asked for, `known_B`
    takes the best zero-shot logit in place of M, and the e_c that the adapter has a say in.

    Reference: tests/reference/fusion.py, candidate by candidate in float64.
    """
    text_BK, count_K = scores.text_BK, scores.count_K
    learnt_K = (count_K > 0).to(text_BK.device)
    if scores.evidence_BK is None or not bool(learnt_K.any()):
        return Fused(text_BK.softmax(dim=-1), text_BK.new_zeros(len(text_BK)))
    outside_K = ~learnt_K
    log_text_BK, log_evidence_BK = log_experts(scores, fusion)
    weight_K = counted_weight(count_K.to(text_BK), fusion.kappa)
    log_BK = torch.logaddexp((1 - weight_K).log() + log_text_BK, weight_K.log() + log_evidence_BK)
    log_BK = fusion.sharpness * (log_BK + fusion.text_power * log_text_BK)
    learnt_BK = log_BK.masked_fill(outside_K, -torch.inf).softmax(dim=-1)

    if not bool(outside_K.any()):
        cosine_BK = _mixed(scores.evidence_BK, scores.adapter_BK, fusion.adapter)
        best_B = text_BK.max(dim=-1).values
        gate_B = _near(cosine_BK, fusion) + fusion.text_slope * (best_B - fusion.text_center)
        return Fused(learnt_BK, gate_B.sigmoid())
    # Frozen evidence alone: no adapter bends how much is left to names without a label.
    near_B = _near(scores.evidence_BK.masked_fill(outside_K, -torch.inf), fusion)
    text_S = text_BK.masked_fill(outside_K, -torch.inf)
    text_U = text_BK.masked_fill(learnt_K, -torch.inf)
    gate_B = text_S.logsumexp(dim=-1) - text_U.logsumexp(dim=-1) + near_B
    # sigmoid(-x) and not 1 - sigmoid(x), which is 0 where the order of U must still show.
    probability_BK = gate_B.sigmoid()[:, None] * learnt_BK
    probability_BK = probability_BK + (-gate_B).sigmoid()[:, None] * text_U.softmax(dim=-1)
    return Fused(probability_BK, gate_B.sigmoid())


def expert_shares(scores: Scores, fusion: Fusion) -> Tensor:
    """
    Return share_BKX of zero-shot, evidence and adapter in each probability; they sum to one.

    If what an expert says of a name were one per cent more, its score would rise, before all are
    made to sum to one, by some per cents; the shares are those rises over their sum. By Euler's
    theorem on homogeneous functions they are, with r = w·p1 / ((1 - w)·p0 + w·p1) and a the
    adapter's weight,

        text     (1 - r + b) / (1 + b)
        cosine        r      / (1 + b),  of which 1 - a is the evidence's and a the adapter's

    where a tuned text tower makes half of the text's share the adapter's. So with b = 0 the first
    line is the probability that the text, and not the cosine, named the class in the mixture. The
    gate between names with and without a label multiplies all of either side, and takes no share.

    Reference: tests/reference/fusion.py, which raises each expert in turn.
    """
    learnt_K = (scores.count_K > 0).to(scores.text_BK.device)
    if scores.evidence_BK is None or not bool(learnt_K.any()):
        nothing_BK = torch.zeros_like(scores.text_BK)
        return torch.stack([nothing_BK + 1, nothing_BK, nothing_BK], dim=-1)
    log_text_BK, log_evidence_BK = log_experts(scores, fusion)
    weight_K = counted_weight(scores.count_K.to(log_text_BK), fusion.kappa)
    odds_BK = log_evidence_BK - log_text_BK + weight_K.log() - (1 - weight_K).log()
    cosine_BK = torch.where(learnt_K, odds_BK.sigmoid() / (1 + fusion.text_power), 0.0)
    text_BK = 1 - cosine_BK
    tuned_BK = _part(scores.adapter_BK, cosine_BK, fusion.adapter)
    tuned_text_BK = _part(scores.tuned_text_BK, text_BK, _TUNED_TEXT) * learnt_K
    return torch.stack(
        [text_BK - tuned_text_BK, cosine_BK - tuned_BK, tuned_BK + tuned_text_BK], dim=-1
    )


def log_experts(scores: Scores, fusion: Fusion) -> tuple[Tensor, Tensor]:
    """Return log p0 and log p1 among the learnt candidates; of the others, minus infinity."""
    outside_K = (scores.count_K == 0).to(scores.text_BK.device)
    assert scores.evidence_BK is not None
    text_BK = _mixed(scores.text_BK, scores.tuned_text_BK, _TUNED_TEXT)
    cosine_BK = _mixed(scores.evidence_BK, scores.adapter_BK, fusion.adapter)
    return (
        text_BK.masked_fill(outside_K, -torch.inf).log_softmax(dim=-1),
        (fusion.scale * cosine_BK).masked_fill(outside_K, -torch.inf).log_softmax(dim=-1),
    )


def counted_weight(count_K: Tensor, kappa: float | Tensor) -> Tensor:
    """Return w = n / (n + κ), the evidence's weight after so many labels."""
    return count_K / (count_K + kappa)


def _near(cosine_BK: Tensor, fusion: Fusion) -> Tensor:
    """Return in nats how near the nearest class is."""
    return fusion.slope * (cosine_BK.max(dim=-1).values - fusion.threshold)


def _mixed(frozen_BK: Tensor, tuned_BK: Tensor | None, share: float) -> Tensor:
    """Return the frozen scores with the tuned ones mixed in, where those are not NaN."""
    if tuned_BK is None:
        return frozen_BK
    mixed_BK = (1 - share) * frozen_BK + share * tuned_BK
    return torch.where(tuned_BK.isnan(), frozen_BK, mixed_BK)


def _part(tuned_BK: Tensor | None, share_BK: Tensor, part: float) -> Tensor:
    """Return how much of a share is the adapter's: nothing where it does not know the class."""
    if tuned_BK is None:
        return torch.zeros_like(share_BK)
    return (part * share_BK).masked_fill(tuned_BK.isnan(), 0.0)
