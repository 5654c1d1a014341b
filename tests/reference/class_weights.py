"""Robust class weights class by class, after the formulas: surplus is handed on round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence


def weights(losses: Sequence[float | None], temperature: float, cap: float) -> list[float]:
    """
    Return p_c ∝ exp(u_c / λ), none above cap / C.

    A class without a loss has 1/C, and the others share the rest as they would without it.
    """
    own = [loss for loss in losses if loss is not None]
    shares = iter(_capped([math.exp((u - max(own)) / temperature) for u in own], cap / len(own)))
    return [
        1 / len(losses) if loss is None else next(shares) * len(own) / len(losses)
        for loss in losses
    ]


def _capped(powers: Sequence[float], limit: float) -> list[float]:
    """Return shares of one; what is above the limit goes to those below it, in proportion."""
    shares = [power / sum(powers) for power in powers]
    if limit >= 1:
        return shares
    while max(shares) > limit + 1e-14:
        surplus = sum(max(0.0, share - limit) for share in shares)
        below = sum(share for share in shares if share < limit)
        shares = [
            share * (1 + surplus / below) if share < limit else min(share, limit)
            for share in shares
        ]
    return shares


def objective(losses: Sequence[float], temperature: float) -> float:
    """Return λ log( (1/C) Σ_c exp(u_c / λ) ): the mean at λ = ∞, the maximum at λ = 0."""
    top = max(losses)
    powers = [math.exp((loss - top) / temperature) for loss in losses]
    return top + temperature * math.log(sum(powers) / len(powers))


def penalised(chosen: Sequence[float], losses: Sequence[float], temperature: float) -> float:
    """Return Σ_c p_c u_c - λ KL(p ‖ 1/C), whose maximum over p is the objective."""
    value = 0.0
    for weight, loss in zip(chosen, losses, strict=True):
        value += weight * loss
        if weight > 0:
            value -= temperature * weight * math.log(weight * len(losses))
    return value


def averages(
    batches: Sequence[tuple[Sequence[float], Sequence[int]]], classes: int, momentum: float
) -> list[float | None]:
    """Return the moving average of each class's mean loss; None for a class that never came."""
    losses: list[float | None] = [None] * classes
    for batch_losses, batch_classes in batches:
        for c in set(batch_classes):
            measured = class_mean(batch_losses, batch_classes, c)
            old = losses[c]
            losses[c] = measured if old is None else (1 - momentum) * old + momentum * measured
    return losses


def weighted_loss(
    losses: Sequence[float],
    classes: Sequence[int],
    chosen: Sequence[float],
    presence: Sequence[float],
) -> float:
    """Return Σ_c (p_c / π_c) · mean loss of the class, over the classes that are there."""
    return sum(chosen[c] / presence[c] * class_mean(losses, classes, c) for c in set(classes))


def class_mean(losses: Sequence[float], classes: Sequence[int], of: int) -> float:
    """Return the mean loss of the samples of one class."""
    own = [loss for loss, c in zip(losses, classes, strict=True) if c == of]
    return sum(own) / len(own)
