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
    """

    kappa: float = 1.0
    scale: float = 28.0
    threshold: float = 0.20


def fuse(
    text_BK: Tensor,
    evidence_BK: Tensor | None,
    adapter_BK: Tensor | None,
    count_K: Tensor,
    fusion: Fusion,
) -> Tensor:
    """
    Return probability_BK over the candidates; each row sums to one.

    Among learnt candidates S the answer is a mixture by counted weight w_c = n_c / (n_c + κ):

        p_S(c) ∝ (1 - w_c) · p0(c | S) + w_c · softmax_S(scale · e_c)

    where e_c is the evidence cosine, averaged with the adapter's where that knows the class. How
    much goes to S at all, against names U without a label, is decided by zero-shot's own mass M
    on S and by how near the nearest learnt class is:

        logit P(S) = logit M + scale · (max_S e_c - threshold)

    Within U the order and the ratios are those of the frozen model.

    Args:
        text_BK: zero-shot logits.
        evidence_BK, adapter_BK: cosines, NaN for a candidate that the head does not know.
        count_K: labels learnt of each candidate; 0 makes it a member of U.
        fusion: the constants.

    Reference: tests/reference/fusion.py, candidate by candidate in float64.
    """
    learnt_K = (count_K > 0).to(text_BK.device)
    if evidence_BK is None or not bool(learnt_K.any()):
        return text_BK.softmax(dim=-1)
    cosine_BK = evidence_BK
    if adapter_BK is not None:
        both_BK = (evidence_BK + adapter_BK) / 2
        cosine_BK = torch.where(adapter_BK.isnan(), evidence_BK, both_BK)
    outside_K = ~learnt_K
    minus_infinity = float("-inf")

    cosine_BK = cosine_BK.masked_fill(outside_K, minus_infinity)
    text_S = text_BK.masked_fill(outside_K, minus_infinity).softmax(dim=-1)
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
    gate = torch.sigmoid(log_mass_S - log_mass_U + fusion.scale * (nearest - fusion.threshold))
    return gate[:, None] * learnt_BK + (1 - gate)[:, None] * unseen_BK
