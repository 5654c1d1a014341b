"""The fusion of the experts, candidate by candidate, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence


def softmax(logits: dict[int, float]) -> dict[int, float]:
    """Return the softmax over the keys."""
    highest = max(logits.values())
    powers = {k: math.exp(logit - highest) for k, logit in logits.items()}
    total = math.fsum(powers.values())
    return {k: power / total for k, power in powers.items()}


def log_mass(logits: dict[int, float]) -> float:
    """Return log Σ exp."""
    highest = max(logits.values())
    return highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits.values()))


def fuse(
    text: Sequence[float],
    evidence: Sequence[float],
    adapter: Sequence[float] | None,
    tuned_text: Sequence[float] | None,
    counts: Sequence[int],
    constants: tuple[float, float, float, float],
) -> list[float]:
    """
    Return the probability of each candidate for one picture.

    Args:
        text: zero-shot logits.
        evidence, adapter: cosines, NaN for a candidate that the head does not know.
        tuned_text: logits through a tuned text tower, NaN likewise.
        counts: labels learnt of each candidate.
        constants: kappa, scale, threshold, and the adapter's share of the cosine.
    """
    kappa, scale, threshold, share = constants
    learnt = [k for k, count in enumerate(counts) if count > 0]
    unseen = [k for k, count in enumerate(counts) if count == 0]
    if not learnt:
        by_text = softmax(dict(enumerate(text)))
        return [by_text[k] for k in range(len(text))]
    cosine = {}
    for k in learnt:
        cosine[k] = evidence[k]
        if adapter is not None and not math.isnan(adapter[k]):
            cosine[k] = (1 - share) * evidence[k] + share * adapter[k]
    learnt_text = {k: text[k] for k in learnt}
    for k in learnt:
        if tuned_text is not None and not math.isnan(tuned_text[k]):
            learnt_text[k] = (text[k] + tuned_text[k]) / 2
    by_text = softmax(learnt_text)
    by_evidence = softmax({k: scale * cosine[k] for k in learnt})
    among = {}
    for k in learnt:
        weight = counts[k] / (counts[k] + kappa)
        among[k] = (1 - weight) * by_text[k] + weight * by_evidence[k]
    total = math.fsum(among.values())
    answer = [0.0] * len(text)
    if not unseen:
        for k in learnt:
            answer[k] = among[k] / total
        return answer
    odds = log_mass({k: text[k] for k in learnt}) - log_mass({k: text[k] for k in unseen})
    odds += scale * (max(cosine.values()) - threshold)
    gate = 1 / (1 + math.exp(-odds))
    among_unseen = softmax({k: text[k] for k in unseen})
    for k in learnt:
        answer[k] = gate * among[k] / total
    for k in unseen:
        answer[k] = (1 - gate) * among_unseen[k]
    return answer
