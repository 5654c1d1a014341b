"""
Three experts, one answer: a counted weight among learnt classes, and a gate to unseen names. ⑨

Shape suffixes: B pictures, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fusion:
    """
    The few numbers of the fusion; a part of each version.

    Args:
        kappa: labels after which evidence weighs as much as the text; grows with how good
            zero-shot is (1 for a weak base model, 4 to 8 for a real CLIP).
        scale: multiplier of evidence cosines before their softmax.
        threshold: evidence cosine at which a picture is as likely of a learnt class as not.
        adapter: weight of the adapter's cosine beside the evidence's, in [0, 1].
    """

    kappa: float = 1.0
    scale: float = 28.0
    threshold: float = 0.20
    adapter: float = 0.35


def fuse(
    text_BK: Tensor,
    evidence_BK: Tensor | None,
    adapter_BK: Tensor | None,
    tuned_text_BK: Tensor | None,
    count_K: Tensor,
    fusion: Fusion,
) -> Tensor:
    """
    Return probability_BK over the candidates; each row sums to one.

    Among learnt candidates S the answer is a mixture by counted weight w_c = n_c / (n_c + κ):

        p_S(c) ∝ (1 - w_c) · p0(c | S) + w_c · softmax_S(scale · e_c)

    where e_c is the evidence cosine, with the adapter's mixed in where that knows the class, and
    p0 likewise has a tuned text tower's logits mixed in. How much goes to S at all, against names
    U without a label, is decided by the frozen model's own mass M on S and by how near the nearest
    learnt class is:

        logit P(S) = logit M + scale · (max_S e_c - threshold)

    Within U the order and the ratios are those of the frozen model.

    Args:
        text_BK: zero-shot logits.
        evidence_BK, adapter_BK: cosines, NaN for a candidate that the head does not know.
        tuned_text_BK: logits through a tuned text tower, NaN likewise; None if it is frozen.
        count_K: labels learnt of each candidate; 0 makes it a member of U.
        fusion: the constants.

    Reference: tests/reference/fusion.py, candidate by candidate in float64.
    """
    learnt_K = (count_K > 0).to(text_BK.device)
    if evidence_BK is None or not bool(learnt_K.any()):
        return text_BK.softmax(dim=-1)
    cosine_BK = _mixed(evidence_BK, adapter_BK, fusion.adapter)
    learnt_text_BK = _mixed(text_BK, tuned_text_BK, 0.5)
    outside_K = ~learnt_K
    minus_infinity = float("-inf")

    cosine_BK = cosine_BK.masked_fill(outside_K, minus_infinity)
    text_S = learnt_text_BK.masked_fill(outside_K, minus_infinity).softmax(dim=-1)
    evidence_S = (fusion.scale * cosine_BK).softmax(dim=-1)
    count = count_K.to(text_BK)
    weight_K = count / (count + fusion.kappa)
    learnt_BK = (1 - weight_K) * text_S + weight_K * evidence_S
    learnt_BK = learnt_BK.masked_fill(outside_K, 0.0)
    learnt_BK = learnt_BK / learnt_BK.sum(dim=-1, keepdim=True)
    if not bool(outside_K.any()):
        return learnt_BK

    unseen_BK = text_BK.masked_fill(learnt_K, minus_infinity).softmax(dim=-1)
    log_mass_S = text_BK.masked_fill(outside_K, minus_infinity).logsumexp(dim=-1)
    log_mass_U = text_BK.masked_fill(learnt_K, minus_infinity).logsumexp(dim=-1)
    nearest = cosine_BK.max(dim=-1).values
    gate_B = log_mass_S - log_mass_U + fusion.scale * (nearest - fusion.threshold)
    # sigmoid(-x) and not 1 - sigmoid(x), which is 0 where the order of U must still show.
    return gate_B.sigmoid()[:, None] * learnt_BK + (-gate_B).sigmoid()[:, None] * unseen_BK


def _mixed(frozen_BK: Tensor, tuned_BK: Tensor | None, share: float) -> Tensor:
    """Return the frozen scores with the tuned ones mixed in, where those are not NaN."""
    if tuned_BK is None:
        return frozen_BK
    mixed_BK = (1 - share) * frozen_BK + share * tuned_BK
    return torch.where(tuned_BK.isnan(), frozen_BK, mixed_BK)
