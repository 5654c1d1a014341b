"""The fusion of the experts, candidate by candidate, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Constants(NamedTuple):
    """The constants of the fusion, in the order in which a version holds them."""

    kappa: float
    text_power: float
    sharpness: float
    scale: float
    adapter: float
    threshold: float
    slope: float
    text_center: float
    text_slope: float


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


def sigmoid(number: float) -> float:
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + math.exp(-number))


def fuse(
    text: Sequence[float],
    evidence: Sequence[float],
    adapter: Sequence[float] | None,
    tuned_text: Sequence[float] | None,
    counts: Sequence[int],
    constants: Constants,
) -> tuple[list[float], float]:
    """
    Return the probability of each candidate for one picture, and that it is of a learnt class.

    Args:
        text: zero-shot logits.
        evidence, adapter: cosines, NaN for a candidate that the head does not know.
        tuned_text: logits through a tuned text tower, NaN likewise.
        counts: labels learnt of each candidate.
        constants: of the fusion.
    """
    learnt = [k for k, count in enumerate(counts) if count > 0]
    unseen = [k for k, count in enumerate(counts) if count == 0]
    if not learnt:
        by_text = softmax(dict(enumerate(text)))
        return [by_text[k] for k in range(len(text))], 0.0
    among = _among_learnt(text, evidence, adapter, tuned_text, counts, constants)
    answer = [0.0] * len(text)
    if not unseen:
        for k in learnt:
            answer[k] = among[k]
        nearest = max(_cosines(evidence, adapter, counts, constants).values())
        best = max(text[k] for k in learnt)
        odds = constants.slope * (nearest - constants.threshold)
        return answer, sigmoid(odds + constants.text_slope * (best - constants.text_center))
    nearest = max(evidence[k] for k in learnt)
    odds = constants.slope * (nearest - constants.threshold)
    odds += log_mass({k: text[k] for k in learnt}) - log_mass({k: text[k] for k in unseen})
    among_unseen = softmax({k: text[k] for k in unseen})
    for k in learnt:
        answer[k] = sigmoid(odds) * among[k]
    for k in unseen:
        answer[k] = sigmoid(-odds) * among_unseen[k]
    return answer, sigmoid(odds)


def _cosines(
    evidence: Sequence[float],
    adapter: Sequence[float] | None,
    counts: Sequence[int],
    constants: Constants,
) -> dict[int, float]:
    """Return the cosine of each learnt candidate, with the adapter's where it knows the class."""
    cosine = {k: evidence[k] for k, count in enumerate(counts) if count > 0}
    for k in cosine:
        if adapter is not None and not math.isnan(adapter[k]):
            cosine[k] = (1 - constants.adapter) * evidence[k] + constants.adapter * adapter[k]
    return cosine


def _among_learnt(
    text: Sequence[float],
    evidence: Sequence[float],
    adapter: Sequence[float] | None,
    tuned_text: Sequence[float] | None,
    counts: Sequence[int],
    constants: Constants,
) -> dict[int, float]:
    """Return the probability of each learnt candidate, given that it is one of them."""
    logit, cosine = {}, _cosines(evidence, adapter, counts, constants)
    for k in cosine:
        logit[k] = text[k]
        if tuned_text is not None and not math.isnan(tuned_text[k]):
            logit[k] = (text[k] + tuned_text[k]) / 2
    by_text = softmax(logit)
    by_evidence = softmax({k: constants.scale * cosine[k] for k in cosine})
    product = {}
    for k in logit:
        weight = counts[k] / (counts[k] + constants.kappa)
        mixture = (1 - weight) * by_text[k] + weight * by_evidence[k]
        product[k] = (mixture * by_text[k] ** constants.text_power) ** constants.sharpness
    total = math.fsum(product.values())
    return {k: power / total for k, power in product.items()}


RAISED = 1e-6


def shares(
    text: Sequence[float],
    evidence: Sequence[float],
    adapter: Sequence[float] | None,
    tuned_text: Sequence[float] | None,
    counts: Sequence[int],
    constants: Constants,
) -> list[tuple[float, float, float]]:
    """
    Return zero-shot's, evidence's and the adapter's share in each candidate's probability.

    What each expert says of the name, the exponential of its score, is raised by a millionth while
    all that is summed over names stays; by how much that raises the name's score is its share.

    Args: as of `fuse`.
    """
    learnt = [k for k, count in enumerate(counts) if count > 0]
    words = {"text": {k: math.exp(text[k]) for k in learnt}}
    words["evidence"] = {k: math.exp(constants.scale * evidence[k]) for k in learnt}
    # An expert that does not know a class says nothing of it, and another speaks in its place.
    words["adapter"] = {
        k: math.exp(constants.scale * adapter[k])
        for k in learnt
        if adapter is not None and not math.isnan(adapter[k])
    }
    words["tuned text"] = {
        k: math.exp(tuned_text[k])
        for k in learnt
        if tuned_text is not None and not math.isnan(tuned_text[k])
    }
    found = []
    for k in range(len(text)):
        if k not in learnt:
            found.append((1.0, 0.0, 0.0))
            continue
        rise = {
            expert: _log_score(k, words, counts, constants, expert)
            - _log_score(k, words, counts, constants, "")
            for expert in words
        }
        total = math.fsum(rise.values())
        tuned = rise["adapter"] + rise["tuned text"]
        found.append((rise["text"] / total, rise["evidence"] / total, tuned / total))
    return found


def _log_score(
    k: int,
    words: dict[str, dict[int, float]],
    counts: Sequence[int],
    constants: Constants,
    raised: str,
) -> float:
    """Return log of the name's score, less what all names share, with one expert's word raised."""

    def said(expert: str, scale: dict[int, float]) -> float:
        return scale[k] * (1 + RAISED) if expert == raised else scale[k]

    def together(first: str, second: str, part: float) -> float:
        """Return the geometric mixture of two, over the sum that it had over all names."""

        def mixture(own: float, other: float | None) -> float:
            if other is None:
                return own
            return math.exp((1 - part) * math.log(own) + part * math.log(other))

        total = math.fsum(mixture(own, words[second].get(c)) for c, own in words[first].items())
        other = said(second, words[second]) if k in words[second] else None
        return mixture(said(first, words[first]), other) / total

    by_text = together("text", "tuned text", 0.5)
    by_cosine = together("evidence", "adapter", constants.adapter)
    weight = counts[k] / (counts[k] + constants.kappa)
    mixture = (1 - weight) * by_text + weight * by_cosine
    return constants.sharpness * (math.log(mixture) + constants.text_power * math.log(by_text))
